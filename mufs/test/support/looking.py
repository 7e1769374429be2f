"""A process that looks at a mount again and again, as programs and people do."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path

import attrs

from mufs.test.support.netns import LabError

LOOK = """
import hashlib, json, os, sys, time
directory, name, sha256 = sys.argv[1:]
path = os.path.join(directory, name)
longest = dict(open=0.0, list=0.0, df=0.0, read=0.0)
size, reading, faults, looks = 0, 0.0, [], 0

def timed(what, function, *arguments):
    start = time.monotonic()
    try:
        return function(*arguments)
    except OSError as error:
        faults.append(f"{what}: {error}")
    finally:
        longest[what] = max(longest[what], time.monotonic() - start)

def listing():
    return [entry.stat().st_size for entry in os.scandir(directory)]

def whole(descriptor):
    global size, reading
    began = time.monotonic()
    # What the kernel has of it is dropped, so that the client is asked.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    digest = hashlib.sha256()
    while data := os.read(descriptor, 1 << 20):
        digest.update(data)
        size += len(data)
    reading += time.monotonic() - began
    if digest.hexdigest() != sha256:
        faults.append("wrong bytes")

def report():
    global size, reading, looks
    rate = size / max(reading, 1e-9)
    print(json.dumps(dict(rate=rate, longest=longest, faults=faults[:5], looks=looks)), flush=True)
    size, reading, looks = 0, 0.0, 0
    longest.update(dict.fromkeys(longest, 0.0))

import select
while True:
    timed("df", os.statvfs, directory)
    timed("list", listing)
    descriptor = timed("open", os.open, path, os.O_RDONLY)
    if descriptor is not None:
        timed("read", whole, descriptor)
        os.close(descriptor)
    looks += 1
    if select.select([0], [], [], 0.25)[0]:
        if not sys.stdin.readline():
            break
        report()
"""


@attrs.frozen
class Looks:
    """
    What was seen since the last report.

    `rate` is in bytes per second of reading, `longest` in seconds by operation.
    """

    rate: float
    longest: dict[str, float]
    faults: list[str]
    looks: int


class Looker:
    """Asks for figures, lists a directory, and opens and reads an image in it, until it is closed.

    It reads past the kernel's page cache.
    """

    def __init__(self, directory: Path, name: str, sha256: str) -> None:
        command = [sys.executable, "-I", "-S", "-c", LOOK, str(directory), name, sha256]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def report(self, timeout: float = 60.0) -> Looks:
        """Return what it saw since the last call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise LabError(f"a look at a mount did not end in {timeout:g} s")
        return Looks(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End it; a blocked look ends only when its mount is gone."""
        self._process.kill()
        self._process.communicate(timeout=10)
