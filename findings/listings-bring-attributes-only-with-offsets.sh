#!/bin/sh
# libfuse 3.14 (high-level interface) and mfusepy 3.1.1: a listing that gives the attributes of each
# name (FUSE_FILL_DIR_PLUS) saves no question about them unless it also gives each name an offset.
# Without offsets libfuse collects the names first and hands them to the kernel without attributes, so
# `ls -l` has each of 500 names looked up and costs 500 calls of getattr, however long attributes are
# valid. With offsets it costs none. mfusepy never passes the flag on, also where readdir yields
# attributes.
#
# Expected: attributes that were handed over are used, with offsets or without.
#
# Needs root, /dev/fuse, and Debian's libfuse3-3 and fuse3 (3.14.0).
set -eu
directory=$(mktemp -d)
remove() {
    umount -l "$directory/mnt" 2>/dev/null || true
    rm -r "$directory"
}
trap remove EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install --quiet mfusepy==3.1.1
mkdir "$directory/mnt"
FUSE_LIBRARY_NAME=fuse3 "$directory/venv/bin/python" - "$directory/mnt" <<'PYTHON'
import os
import stat
import subprocess
import sys
import time

import mfusepy

FILL_DIR_PLUS = 2
NAMES = [f"name{number}" for number in range(500)]
HOW = {
    "as mfusepy has it": (0, False),
    "with the flag, without offsets": (FILL_DIR_PLUS, False),
    "with the flag and offsets": (FILL_DIR_PLUS, True),
}
FOUND = {
    "as mfusepy has it": 500,
    "with the flag, without offsets": 500,
    "with the flag and offsets": 0,
}


class Tree(mfusepy.Operations):
    use_ns = True

    def __init__(self):
        self.asked = 0

    def getattr(self, path, fh=None):
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, "st_ino": 1}
        if path == "/asked":
            return {"st_mode": stat.S_IFLNK | 0o777, "st_ino": 2, "st_size": 8}
        self.asked += 1
        return attributes(path[1:])

    def readlink(self, path):
        return str(self.asked)

    def readdir(self, path, fh):
        return [(name, attributes(name), 0) for name in NAMES]


def attributes(name):
    number = NAMES.index(name) + 10
    return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_ino": number}


class Mount(mfusepy.FUSE):
    def init_fuse_3(self, connection, config):
        # Otherwise the kernel decides from call to call whether it wants attributes.
        connection.contents.want &= ~(1 << 14)  # FUSE_CAP_READDIRPLUS_AUTO
        super().init_fuse_3(connection, config)

    def readdir_fuse_3(self, path, buffer, filler, offset, info, flags):
        plus, offsets = HOW[sys.argv[2]]
        if sys.argv[2] == "as mfusepy has it":
            return super().readdir_fuse_3(path, buffer, filler, offset, info, flags)
        for number, name in enumerate(NAMES[offset:] if offsets else NAMES, offset + 1):
            status = mfusepy.c_stat()
            for field, value in attributes(name).items():
                setattr(status, field, value)
            if filler(buffer, name.encode(), status, number if offsets else 0, plus):
                break
        return 0


def serve():
    timeouts = {"attr_timeout": 60, "entry_timeout": 60}
    Mount(Tree(), sys.argv[1], foreground=True, use_ino=True, **timeouts)


def measure(how):
    child = os.fork()
    if not child:
        sys.argv[2:] = [how]
        try:
            serve()
        finally:
            os._exit(0)
    while not os.path.ismount(sys.argv[1]):
        time.sleep(0.05)
    listed = subprocess.run(["ls", "-l", sys.argv[1]], check=True, capture_output=True, text=True)
    asked = int(os.readlink(os.path.join(sys.argv[1], "asked")))
    subprocess.run(["umount", sys.argv[1]], check=True)
    os.waitpid(child, 0)
    print(f"{how}: {len(listed.stdout.splitlines()) - 1} names, {asked} calls of getattr")
    return asked


print(f"mfusepy 3.1.1, libfuse {mfusepy.fuse_version_major}.{mfusepy.fuse_version_minor}")
found = {how: measure(how) for how in HOW}
if found != FOUND:
    sys.exit(f"the behaviour has changed: {found}")
PYTHON
