#!/bin/sh
# Linux 6.18: inotify reports IN_MODIFY for `touch -m`, which changes no byte of a file, and nothing
# at all for a write through a shared mapping, which does, until the mapping's file is closed.
#
# - Setting both times is IN_ATTRIB, the time of access alone IN_ACCESS, the time of modification
#   alone IN_MODIFY: the kernel translates which times were set, not whether content changed.
# - A store to a page of a mapping changes mtime and raises no event. Closing the file raises
#   IN_CLOSE_WRITE, as it does after an open for writing that wrote nothing.
#
# Expected: IN_ATTRIB for all three ways of touch, and IN_MODIFY for the mapping, at msync() at the
# latest. Who caches by inotify alone drops too much, and keeps what is wrong.
#
# Needs Python 3 and coreutils.
set -eu
uname -sr
python3 - <<'PYTHON'
import ctypes
import mmap
import os
import struct
import subprocess
import tempfile

NAMES = {1: "ACCESS", 2: "MODIFY", 4: "ATTRIB", 8: "CLOSE_WRITE"}
libc = ctypes.CDLL(None, use_errno=True)
directory = tempfile.TemporaryDirectory()
path = os.path.join(directory.name, "file")
with open(path, "wb") as file:
    file.write(bytes(8192))
watch = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(watch, path.encode(), sum(NAMES)) > 0


def events():
    try:
        data = os.read(watch, 65536)
    except BlockingIOError:
        return []
    found = []
    while data:
        _, mask, _, length = struct.unpack_from("iIII", data)
        found.append(NAMES.get(mask, hex(mask)))
        data = data[16 + length :]
    return found


def touch(*options):
    subprocess.run(["touch", *options, path], check=True)


def mapped():
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8192) as pages:
        before = os.stat(path).st_mtime_ns
        pages[4096:4100] = b"text"
        pages.flush()
        assert os.stat(path).st_mtime_ns > before, "mtime is as before"
        expect("store to a shared mapping, msync()", events(), [])


changed = False


def expect(what, found, wanted):
    global changed
    print(f"{what}: {' '.join(found) or 'nothing'}")
    changed = changed or found != wanted


for option, wanted in (("-am", "ATTRIB"), ("-a", "ACCESS"), ("-m", "MODIFY")):
    touch(option)
    expect(f"touch {option}", events(), [wanted, "CLOSE_WRITE"])
mapped()
expect("file of the mapping closed", events(), ["CLOSE_WRITE"])
raise SystemExit(changed)
PYTHON
