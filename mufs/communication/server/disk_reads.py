"""Queue entries being read from disk, ahead of the one that is being sent."""

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from mufs.cache.server.items import Entry
from mufs.interfaces import IImage
from mufs.wire.packing import Packed
from mufs.wire.pages import EXTENT, PAGE

MAX_ENTRIES_AHEAD = 4
"""How many entries are read or ready while another is sent."""

SLOW_READ_SECONDS = 0.1
"""Seconds after which the image that a read waits for no longer delays reads of others."""

MAX_BYTES_AHEAD = 2 * EXTENT
"""
Bytes of entries from which on no further one is read: one of an extent is read while another is
sent, and what is sealed next is still in the processor's cache.
"""

Reading = Callable[[IImage, int, int, int], "Deferred[memoryview]"]
"""
Reads from an image: offset, length, and how many of the bytes after that will be read soon, all
in bytes.
"""


class DiskReads:
    """
    Reads entries and hands them out, the most urgent first. Reads of an image that has a slow one
    do not count towards the limit, so that they do not keep others from being read.
    """

    def __init__(
        self,
        read: Callable[[IImage, int, int, int], "Deferred[Packed]"],
        clock: IReactorTime,
        *,
        wake: Callable[[], None],
        failed: Callable[[Entry, Failure], None],
    ) -> None:
        """
        @param read: reads as L{Reading} does, and packs what it read.
        @param wake: called when an entry is ready, and when others may be read.
        @param failed: called with an entry that cannot be read.
        """
        self._read = read
        self._clock = clock
        self._wake = wake
        self._failed = failed
        self._reading: dict[Entry, float] = {}
        self._slow: set[IImage] = set()
        self._ready: list[tuple[Entry, Packed]] = []
        self._check: IDelayedCall | None = None

    @property
    def has_room(self) -> bool:
        """Whether another entry may be read."""
        ahead = [entry.size for entry, _ in self._ready]
        ahead += [entry.size for entry in self._reading if entry.image not in self._slow]
        return len(ahead) < MAX_ENTRIES_AHEAD and sum(ahead) < MAX_BYTES_AHEAD

    @property
    def is_idle(self) -> bool:
        """Whether no entry is ready, and none is being read of an image that is not slow."""
        return not self._ready and all(entry.image in self._slow for entry in self._reading)

    @property
    def ready(self) -> int:
        """How many entries can be sent."""
        return len(self._ready)

    def pop(self) -> tuple[Entry, Packed]:
        """The next entry to send, with its packed bytes: the first of the most urgent ones."""
        classes = [entry.service_class for entry, _ in self._ready]
        return self._ready.pop(classes.index(min(classes)))

    def begin(self, entry: Entry, following: int) -> None:
        """
        Read an entry.

        @param following: how many pages after it will be read soon.
        """
        image, (offset, length) = entry.image, entry.byte_range
        end = min(offset + length + PAGE * following, image.attributes.size)
        self._reading[entry] = self._clock.seconds()
        if self._check is None:
            self._check = self._clock.callLater(SLOW_READ_SECONDS, self._check_slow_images)
        reading = self._read(image, offset, length, end - offset - length)
        reading.addCallbacks(self._was_read, self._was_not_read, (entry,), {}, (entry,))

    def stop(self) -> None:
        """Stop looking for slow images."""
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _was_read(self, data: Packed, entry: Entry) -> None:
        del self._reading[entry]
        self._ready.append((entry, data))
        self._wake()

    def _was_not_read(self, failure: Failure, entry: Entry) -> None:
        del self._reading[entry]
        self._failed(entry, failure)
        self._wake()

    def _check_slow_images(self) -> None:
        """Find the images with a slow read, so that entries of others are read beside them."""
        late = self._clock.seconds() - SLOW_READ_SECONDS
        self._slow = {entry.image for entry, begun in self._reading.items() if begun <= late}
        self._check = None
        if self._reading:
            self._check = self._clock.callLater(SLOW_READ_SECONDS, self._check_slow_images)
        self._wake()
