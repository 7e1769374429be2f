#!/bin/sh
# cryptography: decrypt_into() raises InvalidTag only after it has written the plaintext of the
# message that it rejects into the caller's buffer, for AES-GCM and ChaCha20-Poly1305 alike.
#
# Expected: a buffer that is untouched, or zeroed. So whoever decrypts straight into a place that
# others read (a cache page, shared memory) must publish it only after the call has returned, and
# must not decrypt over data that is still valid.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet cryptography==50.0.2
"$work/venv/bin/python" - <<'PYTHON'
import sys

import cryptography
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

print("cryptography", cryptography.__version__)
changed = False
message = bytes(range(256)) * 16
for cipher in (AESGCM, ChaCha20Poly1305):
    key = cipher(bytes(32))
    nonce = bytes(12)
    sealed = bytearray(key.encrypt(nonce, message, b"header"))
    sealed[-1] ^= 1  # the tag no longer fits
    buffer = bytearray(b"\xee" * len(message))
    try:
        key.decrypt_into(nonce, sealed, b"header", buffer)
    except InvalidTag:
        state = "the plaintext" if buffer == message else "something else"
        print(f"{cipher.__name__}: InvalidTag, and the buffer holds {state}")
        changed |= buffer != message
    else:
        print(f"{cipher.__name__}: no error")
        changed = True
sys.exit("the behaviour has changed" if changed else 0)
PYTHON
