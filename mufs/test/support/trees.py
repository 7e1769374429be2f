"""A tree of files of all kinds and names, and the attributes by which two trees are compared."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from random import Random

MIB = 1 << 20
GIB = 1 << 30
MANY = 10_000
DEPTH = 20
"""Levels of nested directories with names of 255 bytes: too deep for a single path."""

NAMES = [
    b"\xff\xfe not UTF-8 \x80",
    "Größe 大小".encode(),
    b"two\nlines",
    b"back\\slash \\012",
    b"-rf",
    b" ",
    b"...",
    b"\x01\x7f\t*?'\"$(`",
    b"n" * 255,
    "ü".encode() * 127,
]
"""Names that are difficult for shells, terminals and encodings."""

LINKS = {
    "relative": b"plain",
    "upwards": b"../tree/plain",
    "outside": b"/etc/hostname",
    "dangling": b"no/such/file",
    "bytes": b"\xff\\\n",
    "long": b"x/" * 2000 + b"x",
    "directory": b"kinds",
    "loop": b"loop",
}
"""Symbolic links, and their targets."""

EXTENTS = [0, GIB - 100, 4 * GIB - 77_777, 4 * GIB + 2 * MIB + 5, 5 * GIB - 3000]
"""Offsets of the data in the large sparse file; the rest is holes."""

LARGE = 5 * GIB + 12_345

Look = tuple[int, ...]


def build(root: Path) -> None:
    """Fill an empty directory with all kinds of files: about 20 MB, and 10,000 in one directory."""
    random = Random(0)
    (root / "plain").write_bytes(random.randbytes(4321))
    _build_kinds(root / "kinds", random)
    names = os.fsencode(root / "names")
    os.mkdir(names)
    for name in NAMES:
        with open(os.path.join(names, name), "wb") as file:
            file.write(name * 3)
    for link, target in LINKS.items():
        os.symlink(target, os.fsencode(root / link))
    (root / "many").mkdir()
    for number in range(MANY):
        (root / "many" / f"file {number}").write_bytes(b"+" * (number % 3))
    (root / "image").write_bytes(random.randbytes(16 * MIB + 1234))
    with open(root / "large", "wb") as large:
        for start in EXTENTS:
            large.seek(start)
            large.write(random.randbytes(150_000 if start + 150_000 < LARGE else 0))
        large.truncate(LARGE)
    _build_deep(root / "deep")


def _build_kinds(root: Path, random: Random) -> None:
    root.mkdir()
    (root / "empty").touch()
    (root / "directory" / "in" / "directory").mkdir(parents=True)
    (root / "page").write_bytes(random.randbytes(4096))
    (root / "script").write_bytes(b"#!/bin/sh\nexit 7\n")
    (root / "script").chmod(0o755)
    with open(root / "sparse", "wb") as sparse:
        sparse.seek(3 * MIB)
        sparse.write(b"an island")
        sparse.truncate(8 * MIB)
    (root / "first").write_bytes(random.randbytes(200_000))
    os.link(root / "first", root / "second")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o660, os.makedev(7, 77))
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(os.path.relpath(root / "socket"))
    for mode in (0o000, 0o600, 0o644, 0o755, 0o4755, 0o2711, 0o1777):
        (root / f"{mode:o}").write_bytes(b"mode")
        (root / f"{mode:o}").chmod(mode)
    (root / "closed").mkdir(mode=0o700)
    (root / "closed" / "file").write_bytes(b"not for all")
    (root / "owned").write_bytes(b"owned")
    os.chown(root / "owned", 1234, 4_000_000_000)
    for name, moment in (("old", -86_400_000_000_001), ("far", 4_000_000_000_987_654_321)):
        (root / name).touch()
        os.utime(root / name, ns=(moment, moment))


def _build_deep(root: Path) -> None:
    root.mkdir()
    below = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(DEPTH):
        name = chr(ord("a") + level) * 255
        os.mkdir(name, dir_fd=below)
        above, below = below, os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=below)
        os.close(above)
    with open(os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=below), "wb") as file:
        file.write(b"at the bottom")
    os.close(below)


def look(path: bytes | Path) -> Look:
    """Return the lstat fields of a file, except for its access time and device."""
    found = os.lstat(path)
    return (
        found.st_mode,
        found.st_ino,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_rdev,
        found.st_size,
        found.st_blocks,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )


def looks(top: Path) -> dict[bytes, Look]:
    """Return L{look} of each file beneath a directory, by relative path; empty for a file."""
    root = os.fsencode(top)
    found: dict[bytes, Look] = {}
    if not stat.S_ISDIR(os.lstat(root).st_mode):
        return found
    for directory, directories, files in os.walk(root, onerror=_raise):
        for name in directories + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, root)] = look(path)
    return found


def _raise(error: OSError) -> None:
    raise error
