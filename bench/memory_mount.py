"""A bare fusepy file system that answers from memory: the most that a mount in Python can do.

    python bench/memory_mount.py FILE DIRECTORY [TRACE]

Mounts a directory with one file, which has the bytes of FILE and the name of the bench's image,
with fusepy's defaults. TRACE gets a line for each read: seconds since the first, offset, length.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from fuse import FUSE, FuseOSError, Operations

IMAGE = "disk.img"


class Memory(Operations):  # type: ignore[misc] # fusepy has no types
    """One file."""

    use_ns = True

    def __init__(self, data: bytes, trace: TextIO | None) -> None:
        self._data = data
        self._trace = trace
        self._begin: float | None = None

    def getattr(self, path: str, handle: int | None = None) -> dict[str, Any]:
        """Attributes of the directory, or of the file."""
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path != f"/{IMAGE}":
            raise FuseOSError(errno.ENOENT)
        return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1, "st_size": len(self._data)}

    def read(self, path: str, size: int, offset: int, handle: int) -> bytes:
        """A piece of the file."""
        if self._trace is not None:
            now = time.monotonic()
            self._begin = self._begin or now
            self._trace.write(f"{now - self._begin:.6f},{offset},{size}\n")
        return self._data[offset : offset + size]


if __name__ == "__main__":
    contents = Path(sys.argv[1]).read_bytes()
    record = None
    if len(sys.argv) > 3:
        record = open(sys.argv[3], "w", buffering=1)  # noqa: SIM115
        record.write("t_seconds,offset,length\n")
    FUSE(Memory(contents, record), os.path.abspath(sys.argv[2]), foreground=True, ro=True)
