"""Recorded boots, and images to replay them on."""

from __future__ import annotations

import hashlib
import os
import random
from functools import cached_property
from pathlib import Path

import attrs

DIRECTORY = Path(__file__).parent / "traces"
SIZES = {"tiny": 64 << 20, "debian": 1 << 30}
"""Bytes of the image that each trace was recorded with."""
PAGE = 4096
CHUNK = 128 * 1024
"""Bytes of an image that are generated at a time."""


@attrs.define(slots=False)
class Trace:
    """The reads of one boot, as a FUSE daemon received them."""

    name: str
    path: Path
    size: int
    """Bytes of the image."""

    @cached_property
    def reads(self) -> list[tuple[int, int]]:
        """Offset and length of each read, in order."""
        rows = [line.split(",") for line in self.path.read_text().splitlines()[1:]]
        return [(int(offset), int(length)) for _, offset, length in rows]

    @property
    def bytes_read(self) -> int:
        """Bytes of all reads together."""
        return sum(length for _, length in self.reads)

    @property
    def unique_bytes(self) -> int:
        """Bytes of the image that are read, each counted once, in whole pages."""
        return len(self._parts(PAGE)) * PAGE

    def _parts(self, size: int) -> set[int]:
        """The numbers of the parts of this size that are read."""
        return {
            part
            for offset, length in self.reads
            for part in range(offset // size, -(-(offset + length) // size))
        }

    def write_image(self, path: Path) -> None:
        """Write an image that has random bytes, always the same, in all chunks that are read."""
        with open(path, "wb") as image:
            for chunk in sorted(self._parts(CHUNK)):
                image.seek(chunk * CHUNK)
                image.write(random.Random(f"{self.name} {chunk}").randbytes(CHUNK))
            image.truncate(self.size)

    def sha256(self, path: Path) -> str:
        """The SHA-256 of what all reads return from this file, in order."""
        digest = hashlib.sha256()
        with open(path, "rb") as image:
            for offset, length in self.reads:
                digest.update(os.pread(image.fileno(), length, offset))
        return digest.hexdigest()


def trace(name: str) -> Trace:
    """One of the recorded traces."""
    return Trace(name, DIRECTORY / f"{name}-fuse.trace", SIZES[name])
