"""A bare fusepy file system that answers from memory: what a mount in Python gives at most.

    python bench/memory_mount.py FILE DIRECTORY

Mounts a directory that holds the file's bytes under the name of images, with fusepy's defaults.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Any

from fuse import FUSE, FuseOSError, Operations

IMAGE = "disk.img"


class Memory(Operations):  # type: ignore[misc] # fusepy has no types
    """One file."""

    use_ns = True

    def __init__(self, data: bytes) -> None:
        self._data = data

    def getattr(self, path: str, handle: int | None = None) -> dict[str, Any]:
        """Attributes of the directory, or of the file."""
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path != f"/{IMAGE}":
            raise FuseOSError(errno.ENOENT)
        return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1, "st_size": len(self._data)}

    def read(self, path: str, size: int, offset: int, handle: int) -> bytes:
        """A piece of the file."""
        return self._data[offset : offset + size]


if __name__ == "__main__":
    contents = Path(sys.argv[1]).read_bytes()
    FUSE(Memory(contents), os.path.abspath(sys.argv[2]), foreground=True, ro=True)
