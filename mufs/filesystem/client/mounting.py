"""The mount of this client: made, recognised among others, and taken away."""

import os
import signal
from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessValue
from twisted.python.failure import Failure

from mufs.filesystem.client.bridge import Bridge
from mufs.filesystem.client.libfuse import Libfuse
from mufs.filesystem.client.mount import Operations, serve
from mufs.filesystem.client.mountpoint import (
    TYPE,
    Mounted,
    claim,
    fusermount,
    raise_read_ahead,
    uppermost,
)

UNMOUNT_TIMEOUT = 1.0
"""Seconds that FUSE may take to end once it is unmounted."""

MAX_UNMOUNT_TRIES = 5
"""Tries in that time: the mount may still be in the making when the client has to end."""

UNMOUNT_RESERVED_FDS = 10
"""File descriptors kept for unmounting, which must work when there are no others left."""


@frozen
class MountSettings:
    """
    How to mount.

    @ivar directory: the mount point.
    @ivar source: what mount(8) and df(1) show as the device.
    """

    libfuse: Libfuse
    directory: str
    source: str
    allow_other: bool
    noexec: bool


class MountFailed(Exception):
    """There is no mount, or no longer, and nobody unmounted it; the text says what happened."""


class Mounting:
    """One mount, from its making to its end."""

    def __init__(
        self,
        reactor: Any,
        bridge: Bridge,
        settings: MountSettings,
        *,
        on_mounted: Callable[[], None],
    ) -> None:
        """@param on_mounted: called once the kernel has the mount."""
        self._reactor = reactor
        self._bridge = bridge
        self._settings = settings
        self._on_mounted = on_mounted
        self._before: Mounted | None = None
        self._mounted: Mounted | None = None
        self._claimed: int | None = None
        self._served: Deferred[None] | None = None
        self._reserved = [os.open(os.devnull, os.O_RDONLY) for _ in range(UNMOUNT_RESERVED_FDS)]

    def claim(self) -> None:
        """
        Keep other clients away from the mount point until it is mounted.

        @raise UnusableMountPoint: when another one has it.
        """
        self._claimed = claim(self._settings.directory)

    def mount(self) -> "Deferred[None]":
        """
        Mount, and answer the kernel in a thread.

        @return: fires when it was unmounted; fails with L{MountFailed}.
        """
        settings = self._settings
        self._before = uppermost(settings.directory)
        operations = Operations(self._bridge, settings.libfuse.context, self._note_mounted)
        self._served = self._bridge.run(
            lambda: serve(
                settings.libfuse,
                operations,
                settings.directory,
                source=settings.source,
                allow_other=settings.allow_other,
                noexec=settings.noexec,
            ),
            "fuse",
        )
        ended: Deferred[None] = Deferred()
        self._served.addBoth(self._end).chainDeferred(ended)
        return ended

    @inlineCallbacks
    def unmount(self) -> Any:
        """Unmount if it is mounted, and wait for C{UNMOUNT_TIMEOUT} at most."""
        for descriptor in self._reserved:
            os.close(descriptor)
        self._reserved.clear()
        if self._served is None:
            return
        directory = self._settings.directory
        for _ in range(MAX_UNMOUNT_TRIES):
            if self._served.called:
                return
            if self._is_own(uppermost(directory)):
                arguments = ["-u", "-z", "-q", "--", directory]
                yield getProcessValue(fusermount(), arguments, os.environ)
            late: Deferred[None] = deferLater(self._reactor, UNMOUNT_TIMEOUT / MAX_UNMOUNT_TRIES)
            yield DeferredList([self._served, late], fireOnOneCallback=True)

    def _note_mounted(self) -> None:
        there = uppermost(self._settings.directory)
        # Something else may be mounted over it already.
        if there is not None and there.type == TYPE:
            self._mounted = there
            if self._settings.libfuse.major == 3:
                raise_read_ahead(there)
        if self._claimed is not None:
            os.close(self._claimed)
            self._claimed = None
        self._on_mounted()

    def _end(self, result: "Failure | None") -> None:
        # libfuse restores the default, which would end the process at the next broken pipe.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        directory = self._settings.directory
        # libfuse fails also after some ways of unmounting: then the mount is no longer there.
        if isinstance(result, Failure):
            if self._mounted is None:
                raise MountFailed(f"cannot mount at {directory} (libfuse says why above)")
            if uppermost(directory) == self._mounted:
                raise MountFailed(f"the mount at {directory} was aborted")

    def _is_own(self, there: Mounted | None) -> bool:
        """Whether this is the mount of this client, or, before that is known, a new one."""
        if self._mounted is not None:
            return there == self._mounted
        return there is not None and there.type == TYPE and there != self._before
