"""Read images of a mount, sequentially and at random, and check each range by its SHA-256.

This is a process of `mufs.test.soak`: it reads until its standard input ends, and writes a line of
JSON for each error, for each wrong range, and twice a second with its progress::

    soak_reader.py MOUNT TRUTH SEED

The directory TRUTH has the versions of each image as IMAGE.VERSION.  All ranges read from one open
file must be from the same version, one that existed when the file was opened.  A read that the
kernel splits may be short when a later part fails; reading on must then give the error.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import select
import sys
import time
from pathlib import Path

KIB = 1 << 10


def write_line(**what: object) -> None:
    print(json.dumps({"at": time.monotonic(), **what}), flush=True)


class Reader:
    """
    The reader of one host.

    `longest` is the duration of its longest read in seconds, `shorts` the number of short reads.
    """

    def __init__(self, mount: Path, truth: Path, seed: str) -> None:
        self.mount = mount
        self.truth = truth
        self.chance = random.Random(seed)
        self.reads = self.bytes = self.opens = self.shorts = 0
        self.longest = 0.0
        self.reported_at = 0.0

    def versions(self, image: str) -> set[int]:
        return {int(path.suffix[1:]) for path in self.truth.glob(f"{image}.*")}

    def run(self) -> None:
        while not select.select([sys.stdin], [], [], 0)[0]:
            image = self.chance.choice(["a.img", "b.img", "c.img"])
            try:
                self.read_image(image)
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, str(error))
                write_line(error=name, image=image)
                time.sleep(0.2)
        self.report()

    def report(self) -> None:
        self.reported_at = time.monotonic()
        write_line(
            reads=self.reads,
            bytes=self.bytes,
            opens=self.opens,
            shorts=self.shorts,
            longest=self.longest,
        )

    def read_image(self, image: str) -> None:
        """Read some ranges of an image, and check them."""
        # The open must not give a version that was replaced earlier.
        newest = max(self.versions(image))
        begin = time.monotonic()
        file = os.open(self.mount / image, os.O_RDONLY)
        try:
            self.longest = max(self.longest, time.monotonic() - begin)
            self.opens += 1
            # The kernel keeps names for a second, so the previous version is allowed.
            candidates = {version for version in self.versions(image) if version >= newest - 1}
            size = os.fstat(file).st_size
            for offset, length in self.ranges(size):
                length = min(length, size - offset)
                data = self.read(file, offset, length)
                candidates = self.matching(image, candidates, offset=offset, data=data)
                if not candidates or not data:
                    write_line(wrong=[image, offset, length, len(data)])
                    return
                if len(data) < length:
                    self.shorts += 1
                    more = self.read(file, offset + len(data), length - len(data))
                    write_line(wrong=[image, offset, length, len(data), "then", len(more)])
                    return
                if time.monotonic() > self.reported_at + 0.5:
                    self.report()
                # Have the next read reach mUFS instead of the kernel's page cache.
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                if select.select([sys.stdin], [], [], 0)[0]:
                    return
        finally:
            # close(2) fails when the mount is gone.
            with contextlib.suppress(OSError):
                os.close(file)

    def read(self, file: int, offset: int, length: int) -> bytes:
        begin = time.monotonic()
        data = os.pread(file, length, offset)
        self.longest = max(self.longest, time.monotonic() - begin)
        self.reads += 1
        self.bytes += len(data)
        return data

    def ranges(self, size: int) -> list[tuple[int, int]]:
        """Choose sequential or random ranges: offsets and lengths."""
        if self.chance.random() < 0.4:
            begin = self.chance.randrange(size)
            step = self.chance.choice([64 * KIB, 128 * KIB, 1024 * KIB])
            end = min(size, begin + self.chance.choice([2, 8, 64]) * 1024 * KIB)
            return [(offset, step) for offset in range(begin, end, step)]
        longest = self.chance.choice([4 * KIB, 64 * KIB, 300 * KIB])
        return [
            (self.chance.randrange(size), self.chance.randint(1, longest))
            for _ in range(self.chance.randint(1, 100))
        ]

    def matching(self, image: str, candidates: set[int], *, offset: int, data: bytes) -> set[int]:
        """Return the candidates that have these bytes at this offset."""
        found = hashlib.sha256(data).digest()
        right = set()
        for version in candidates:
            with (
                contextlib.suppress(FileNotFoundError),
                open(self.truth / f"{image}.{version}", "rb", buffering=0) as truth,
            ):
                truth.seek(offset)
                if hashlib.sha256(truth.read(len(data))).digest() == found:
                    right.add(version)
        return right


if __name__ == "__main__":
    Reader(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]).run()
