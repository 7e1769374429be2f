"""
Which changes of a file are changes of its content (docs/decisions/mount-and-fuse.md).

The stamps of a file (size, mtime, ctime) show that something changed. What it was tell the
kernel's events (inotify(7)), and a lease (fcntl(2)), which is granted only while nobody has the
file open for writing.
"""

import ctypes
import fcntl
import os
import signal
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from struct import Struct
from threading import Lock
from time import monotonic, sleep
from typing import Any
from weakref import finalize

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from mufs.filesystem.server.identity import number

MAX_WATCHED = 4096
"""Files watched, including closed ones. Linux allows a user 8192 or more."""

SETTLING_SECONDS = 0.2
"""
What touch(1) is given from opening a file until its closing is noted, which takes a millisecond
where nothing else runs; and what a change of mtime is given to be explained.
"""

RETRY_INTERVAL = 0.002
"""Seconds."""

_MODIFY, _ATTRIB, _CLOSE_WRITE, _OPEN = 0x2, 0x4, 0x8, 0x20
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_EVENT = Struct("=iIII")
"""Watch, mask, cookie, and the length of a name, which a watched file's event has not."""

_libc = ctypes.CDLL(None, use_errno=True)

Stamps = tuple[int, int, int]
"""Size in bytes, mtime and ctime in nanoseconds."""


def stamps_of(found: os.stat_result) -> Stamps:
    """What differs after any change of a file."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def first_generation(image: int, stamps: Stamps, *, watchable: bool) -> int:
    """
    The generation of a file whose changes were not watched so far.

    @param watchable: if not, no later change of a ctime can be explained, so ctime is a part of it.
    """
    return number(image, *(stamps[:2] if watchable else stamps))


def may_have_writer(fd: int) -> bool:
    """
    Whether anybody on this host may have a file open for writing, or mapped for it.

    Only the owner of the file, or who has CAP_LEASE, is told that nobody has.
    """
    try:
        # A descriptor of its own: closing it gives the lease back.
        file = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        # Whoever opens the file for writing now waits until it is closed here. The signal that
        # this process gets for it is SIGIO by default, which would end it.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


class Content:
    """
    What is known of the content of a file.

    @ivar number: of the file.
    @ivar generation: of the content.
    @ivar watch: the number under which the file's events come; below 0 if they do not.
    @ivar image: returns an open image of the file, if there is one.
    """

    def __init__(
        self,
        image: int,
        found: os.stat_result,
        *,
        watchable: bool,
        lock: Lock,
        drain: Callable[[], object],
    ) -> None:
        """
        @param image: the number of the file.
        @param lock: is held while L{note} is called.
        @param drain: has L{note} called for all events so far.
        """
        self.number = image
        self._stamps = stamps_of(found)
        self.generation = first_generation(image, self._stamps, watchable=watchable)
        self.watch = -1
        self.image: Callable[[], Any] = lambda: None
        self._event_lock = lock
        self._drain = drain
        self._lock = Lock()
        self._opened = self._attributes_set = -SETTLING_SECONDS
        self._forget_events()

    def _forget_events(self) -> None:
        self._written = self._attributes_changed = self._writer_closed = False

    def note(self, mask: int) -> None:
        """An event of the file."""
        now = monotonic()
        if mask & _OPEN:
            self._opened = now
        if mask & _MODIFY:
            self._written = True
        if mask & _ATTRIB:
            self._attributes_changed = True
            self._attributes_set = self._opened
        # touch(1) opens the file for writing, sets the times, and closes it at once.
        if mask & _CLOSE_WRITE:
            if now - self._attributes_set > SETTLING_SECONDS:
                self._writer_closed = True
            self._attributes_set = -SETTLING_SECONDS
        if mask & _OVERFLOW:
            self._writer_closed = self._attributes_changed = True

    def is_current(self, found: os.stat_result) -> bool:
        """Whether nothing has changed; called after each read."""
        return stamps_of(found) == self._stamps and not self._written

    def settle(self, fd: int) -> tuple[int, os.stat_result]:
        """
        Find out whether the content has changed, which may take C{SETTLING_SECONDS}.

        @param fd: of the file; may be of O_PATH.
        @return: the generation, and the attributes that go with it.
        """
        with self._lock:
            deadline = monotonic() + SETTLING_SECONDS
            while True:
                found, changed = self._compare(fd)
                if changed is None and monotonic() < deadline:
                    sleep(RETRY_INTERVAL)
                    continue
                if changed is not False:
                    self._change(fd, found)
                return self.generation, found

    def look(self, fd: int) -> None:
        """Note a change that is clearly not one of the content. Does not block."""
        if self._lock.acquire(blocking=False):
            try:
                self._compare(fd)
            finally:
                self._lock.release()

    def _compare(self, fd: int) -> tuple[os.stat_result, bool | None]:
        """@return: the file's attributes, and whether its content has changed, if that is clear."""
        found = os.fstat(fd)
        has_writer = found.st_mtime_ns != self._stamps[1] and may_have_writer(fd)
        # Who wrote before fstat, and is no writer afterwards, has left an event: that of closing
        # the file comes before the kernel forgets the writer.
        self._drain()
        changed = self._is_changed(found, has_writer)
        if changed is False:
            self._accept(fd, found)
        return found, changed

    def _accept(self, fd: int, found: os.stat_result) -> None:
        """Compare with these attributes from now on, and forget the events that led to them."""
        self._stamps = stamps_of(found)
        with self._event_lock:
            # If they have changed again, some of the events may belong to that.
            if stamps_of(os.fstat(fd)) == self._stamps:
                self._forget_events()

    def _is_changed(self, found: os.stat_result, has_writer: bool) -> bool | None:
        """@return: C{None} if that cannot be told yet."""
        size, mtime, _ = self._stamps
        if found.st_size != size or not found.st_nlink or self._written:
            return True
        if self.watch < 0:
            return stamps_of(found) != self._stamps
        if found.st_mtime_ns == mtime:
            # Both: written through a mapping, say, and the mtime put back.
            return self._attributes_changed and self._writer_closed
        if self._writer_closed:
            return True
        return False if self._attributes_changed and not has_writer else None

    def _change(self, fd: int, found: os.stat_result) -> None:
        stamps = stamps_of(found)
        if stamps[1] > self._stamps[1]:
            self.generation = first_generation(self.number, stamps, watchable=True)
        else:
            # The mtime was put back, and may have belonged to another content before.
            self.generation = number(self.number, *stamps, self.generation)
        self._accept(fd, found)


@implementer(IReadDescriptor)
class Contents:
    """
    The contents of the files opened last, which are watched also while nobody has them open.

    Any thread may call any method. Events should be read soon: what happened at different times
    is easier to tell apart.
    """

    _log = Logger()

    def __init__(self) -> None:
        self._by_image: OrderedDict[int, Content] = OrderedDict()
        self._by_watch: dict[int, Content] = {}
        self._lock = Lock()
        self.can_watch = True
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            finalize(self, os.close, self._fd)

    def fileno(self) -> int:
        """See C{IReadDescriptor.fileno}; -1 if nothing can be watched."""
        return self._fd

    def get(self, image: int) -> Content | None:
        """What is known of the content of a file, by its number."""
        return self._by_image.get(image)

    def watch(self, fd: int, image: int, *, watchable: bool) -> Content:
        """
        The content of a file that is open.

        @param image: the number of the file.
        @param watchable: whether inotify reports all changes of the file.
        """
        with self._lock:
            content = self._by_image.get(image)
            if content is not None:
                self._by_image.move_to_end(image)
                return content
            watch = self._add_watch(fd) if watchable else -1
            watchable = watch >= 0
            content = Content(
                image, os.fstat(fd), watchable=watchable, lock=self._lock, drain=self._drain
            )
            if watch >= 0:
                content.watch = watch
                self._by_watch[watch] = self._by_image[image] = content
                if len(self._by_image) > MAX_WATCHED:
                    self._forget_oldest(content)
            return content

    def logPrefix(self) -> str:
        """See C{IReadDescriptor.logPrefix}."""
        return type(self).__name__

    def connectionLost(self, reason: object) -> None:
        """See C{IReadDescriptor.connectionLost}; never called."""

    def doRead(self) -> None:
        """See C{IReadDescriptor.doRead}: look soon at what has happened to open images."""
        for content in self._drain():
            image = content.image()
            if image is not None:
                content.look(image.fileno())

    def _add_watch(self, fd: int) -> int:
        mask = _MODIFY | _ATTRIB | _CLOSE_WRITE | _OPEN
        watch: int = _libc.inotify_add_watch(self._fd, b"/proc/self/fd/%d" % fd, mask)
        if watch < 0 and self.can_watch:
            self.can_watch = False
            self._log.warn(
                "cannot watch images ({reason}): every change of one, also of its mode, makes it "
                "stale",
                reason=os.strerror(ctypes.get_errno()),
            )
        return watch

    def _forget_oldest(self, new: Content) -> None:
        """Watch a file less; one of which an image is open is watched for as long as it is."""
        for oldest in self._by_image.values():
            if oldest is not new and oldest.image() is None:
                _libc.inotify_rm_watch(self._fd, oldest.watch)
                self._forget(oldest)
                return

    def _forget(self, content: Content) -> None:
        del self._by_watch[content.watch], self._by_image[content.number]
        content.watch = -1

    def _drain(self) -> set[Content]:
        """Note all events. @return: the contents that have any."""
        found: set[Content] = set()
        with self._lock, suppress(BlockingIOError):
            while self._fd >= 0:
                for watch, mask, _, _ in _EVENT.iter_unpack(os.read(self._fd, 1 << 16)):
                    found |= self._note(watch, mask)
        return found

    def _note(self, watch: int, mask: int) -> set[Content]:
        if mask & _OVERFLOW:
            concerned = set(self._by_watch.values())
        else:
            concerned = {self._by_watch[watch]} if watch in self._by_watch else set()
        for content in concerned:
            content.note(mask)
            if mask & _IGNORED:  # the file is gone, or its file system
                self._forget(content)
        return concerned
