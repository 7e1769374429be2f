#!/bin/sh
# cryptography: up to 49 a call of AESGCM keeps every other Python thread waiting from its first
# to its last byte. From 50 on, encrypt_into() and decrypt_into() let others run; encrypt() and
# decrypt() do so for the cipher alone, and still hold the interpreter's lock while they make the
# bytes object that they return, which is about half of the time for a large message.
#
# Expected: the same for all four calls. So sealing in a thread helps only from version 50 on, and
# only with the calls that fill a buffer.
#
# Printed for each call: the longest time that another thread had to wait, as a part of the call,
# the median of 15.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/measure.py" <<'PYTHON'
import statistics
import sys
import threading
import time

import cryptography
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SIZE = 64 << 20


def longest_wait(call):
    ended = threading.Event()
    waits = []

    def watch():
        last = time.perf_counter()
        while not ended.is_set():
            now = time.perf_counter()
            waits.append(now - last)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    time.sleep(0.05)
    waits.clear()
    began = time.perf_counter()
    call()
    took = time.perf_counter() - began
    ended.set()
    watcher.join()
    return max(waits) / took


sys.setswitchinterval(0.0005)
key, nonce, message = AESGCM(bytes(32)), bytes(12), bytes(SIZE)
buffer = bytearray(SIZE + 16)
calls = {
    "encrypt": lambda: key.encrypt(nonce, message, None),
    "encrypt_into": lambda: key.encrypt_into(nonce, message, None, buffer),
}
version = cryptography.__version__
parts = {
    name: statistics.median(longest_wait(call) for _ in range(15)) for name, call in calls.items()
}
for name, part in parts.items():
    print(f"cryptography {version}: {name}: {part:.2f}")
if version == "49.0.0":
    same = min(parts.values()) > 0.7
else:
    same = parts["encrypt_into"] < 0.8 * parts["encrypt"] and parts["encrypt"] < 0.8
sys.exit(not same)
PYTHON
changed=
for version in 49.0.0 50.0.2; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet "cryptography==$version"
    "$work/$version/bin/python" "$work/measure.py" || changed=yes
done
[ -z "$changed" ] || { echo "the behaviour has changed" >&2; exit 1; }
