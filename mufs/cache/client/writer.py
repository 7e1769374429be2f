"""
What waits to be written to a cache directory.

The thread that changes the cache queues jobs, and never waits for the disk; L{Writer.run} does
them in a thread of its own.
"""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from twisted.logger import Logger

from mufs.cache.client.index import PendingWrite, Place
from mufs.wire.pages import BLOCK, ImageKey

MAX_QUEUED = 64 * 1024 * 1024
"""Bytes that may wait in memory. Each job counts as a block at least."""

RETRY_INTERVAL = 1.0
"""Seconds between tries of what cannot be written."""


Part = tuple[Place, PendingWrite]
"""Pages, and their block."""


class Writer:
    """A queue of writes and other work on files."""

    _log = Logger()

    def __init__(self, path: str, write: Callable[[list[Part]], None]) -> None:
        """
        @param path: of the directory, for the log.
        @param write: writes pages of adjacent blocks of an image. Raises C{OSError}.
        """
        self._path = path
        self._write = write
        self._jobs: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._given_up: deque[Place] = deque()
        self._failing = False
        # Each is changed by one thread alone.
        self._extra_queued = self._extra_done = 0

    def write(self, parts: list[Part]) -> None:
        """
        Queue pages of adjacent blocks of an image; C{unwritten} of their places has them until they
        are on disk.
        """
        self._extra_queued += _extra(parts)
        self._jobs.put((self._write, parts))

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Queue a call that changes files. It may raise C{OSError}."""
        self._jobs.put((function, *arguments))

    def is_behind(self) -> bool:
        """Whether half of what may wait is waiting."""
        return self._waiting() >= MAX_QUEUED // 2

    def give_up(self, place: Place) -> None:
        """Have the block at a place dropped: it cannot be written. For the thread that writes."""
        self._given_up.append(place)

    def pop_overflow(self) -> tuple[ImageKey, int] | None:
        """
        A block to drop: one that was given up; or else drop the oldest jobs until there is room, or
        a write is among them: its block.
        """
        while self._given_up:
            place = self._given_up.popleft()
            if place.unwritten:
                return place.image.key, place.number
        while self._waiting() >= MAX_QUEUED:
            with suppress(Empty):
                job = self._jobs.get_nowait()
                if job is not None and job[0] == self._write:
                    self._extra_queued -= _extra(job[1])
                    self._given_up.extend(
                        place for place, pending in job[1] if pending in (place.unwritten or ())
                    )
                    return self.pop_overflow()
        return None

    def _waiting(self) -> int:
        return self._jobs.qsize() * BLOCK + self._extra_queued - self._extra_done

    def stop(self) -> None:
        """Let L{run} return once it has done what is queued."""
        self._jobs.put(None)

    def run(self) -> None:
        """Do what is queued until L{stop}. What fails is queued again, and tried later."""
        for function, *arguments in iter(self._jobs.get, None):
            try:
                function(*arguments)
            except OSError as error:
                if not self._failing:
                    self._failing = True
                    self._log.warn(
                        "cannot write to {path} ({reason}): new data is held in memory only",
                        path=self._path, reason=error.strerror,
                    )  # fmt: skip
                self._jobs.put((function, *arguments))
                time.sleep(RETRY_INTERVAL)
            else:
                if function == self._write:
                    self._extra_done += _extra(*arguments)
                    if self._failing:
                        self._failing = False
                        self._log.info("writing to {path} again", path=self._path)


def _extra(parts: list[Part]) -> int:
    """By how many bytes a write counts as more than a block."""
    return max(0, sum(len(pending.data) for _, pending in parts) - BLOCK)
