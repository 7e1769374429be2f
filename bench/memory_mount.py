"""A file system that answers from memory: the most that a mount in Python can do.

    python bench/memory_mount.py FILE DIRECTORY [TRACE]

Mounts a directory with one file, which has the bytes of FILE and the name of the bench's image,
with the libfuse that mUFS uses here, and its defaults. TRACE gets a line for each read: seconds
since the first, offset, length.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from mufs.filesystem.client import libfuse
from mufs.wire.metadata import Attributes

IMAGE = "disk.img"


class Memory:
    """One file, for L{libfuse.Mount}."""

    use_ns = True

    def __init__(self, data: bytes, trace: TextIO | None) -> None:
        self._data = memoryview(data)
        self._trace = trace
        self._begin: float | None = None

    def getattr(self, path: str, info: Any = None) -> Attributes:
        """Attributes of the directory, or of the file."""
        if path not in ("/", f"/{IMAGE}"):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        is_file = path != "/"
        mode = stat.S_IFREG | 0o444 if is_file else stat.S_IFDIR | 0o755
        size = len(self._data) if is_file else 0
        zeros = dict.fromkeys(("uid", "gid", "rdev", "atime", "mtime", "ctime", "generation"), 0)
        return Attributes(
            mode=mode,
            ino=1 + is_file,
            nlink=2 - is_file,
            size=size,
            blocks=-(-size // 512),
            **zeros,
        )

    def lseek(self, offset: int, whence: int, info: Any) -> int:
        """Have the kernel take all for data."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def read(self, handle: int, offset: int, target: memoryview) -> int:
        """A piece of the file."""
        if self._trace is not None:
            now = time.monotonic()
            self._begin = self._begin or now
            self._trace.write(f"{now - self._begin:.6f},{offset},{len(target)}\n")
        piece = self._data[offset : offset + len(target)]
        target[: len(piece)] = piece
        return len(piece)


if __name__ == "__main__":
    contents = Path(sys.argv[1]).read_bytes()
    record = None
    if len(sys.argv) > 3:
        record = open(sys.argv[3], "w", buffering=1)  # noqa: SIM115
        record.write("t_seconds,offset,length\n")
    libfuse.load().serve(Memory(contents, record), os.path.abspath(sys.argv[2]), ro=True)
