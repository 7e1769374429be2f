"""The mount of a client, without FUSE."""

import os
import signal
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client import mounting
from mufs.filesystem.client.mounting import (
    UNMOUNT_RESERVED_FDS,
    UNMOUNT_TIMEOUT,
    MountFailed,
    Mounting,
    MountSettings,
)
from mufs.filesystem.client.mountpoint import TYPE, Mounted, fusermount
from mufs.test.support.doubles import make_libfuse

POINT = "/mnt/images"
BEFORE, OWN, OTHER = Mounted(1, "0:1", TYPE), Mounted(2, "0:2", TYPE), Mounted(3, "0:3", "ext4")


class RecordingBridge:
    """Runs nothing; the test tells when what it was given ends."""

    def __init__(self) -> None:
        self.served: Deferred[None] = Deferred()
        self.names: list[str] = []

    def run(self, function: Any, name: str) -> Deferred[None]:
        """See L{Bridge.run}."""
        self.names.append(name)
        return self.served


class MountingTests(SynchronousTestCase):
    """One mount, from its making to its end."""

    def setUp(self) -> None:
        """Have one that is not made yet."""
        self.clock = Clock()
        bridge: Any = RecordingBridge()
        self.served: Deferred[None] = bridge.served
        self.threads: list[str] = bridge.names
        self.there: Mounted | None = None
        self.mounted = 0
        self.ran: list[list[str]] = []
        self.patch(mounting, "uppermost", lambda path: self.there)
        self.patch(mounting, "getProcessValue", self.run_fusermount)
        self.raised: list[Mounted] = []
        self.patch(mounting, "raise_read_ahead", self.raised.append)
        settings = MountSettings(
            make_libfuse(), POINT, "tcp:host:7040", allow_other=False, noexec=False
        )
        self.mounting = Mounting(self.clock, bridge, settings, on_mounted=self.note_mounted)
        self.addCleanup(self.close_reserved, self.mounting)

    def close_reserved(self, mounting: Mounting) -> None:
        """Let the descriptors go that a mount keeps."""
        while mounting._reserved:
            os.close(mounting._reserved.pop())

    def note_mounted(self) -> None:
        """The kernel has the mount."""
        self.mounted += 1

    def run_fusermount(self, program: str, arguments: list[str], env: object) -> Deferred[int]:
        """Unmount what is there."""
        self.assertEqual(self.mounting._reserved, [])
        self.ran.append([program, *arguments])
        self.there = None
        return succeed(0)

    def mount(self) -> Deferred[None]:
        """Mount, and have the kernel accept it."""
        ended = self.mounting.mount()
        self.there = OWN
        self.mounting._note_mounted()
        return ended

    def end(self, error: Exception | None = None) -> None:
        """Libfuse returns."""
        if error is None:
            self.served.callback(None)
        else:
            self.served.errback(error)

    def test_mounted(self) -> None:
        """Once the kernel has the mount that is told; it is served in a thread of its own."""
        ended = self.mount()
        self.assertEqual(self.mounted, 1)
        self.assertEqual(self.threads, ["fuse"])
        self.assertEqual(self.raised, [OWN])
        self.assertNoResult(ended)

    def test_unmounted_by_others(self) -> None:
        """A mount that somebody took away has ended, whatever libfuse says of it."""
        for error in (None, RuntimeError(1)):
            self.setUp()
            ended = self.mount()
            self.there = None
            self.end(error)
            self.assertIsNone(self.successResultOf(ended))

    def test_broken_pipe(self) -> None:
        """Libfuse's end leaves no default for SIGPIPE, which would end the process."""
        former = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        self.addCleanup(signal.signal, signal.SIGPIPE, former)
        ended = self.mount()
        self.end()
        self.successResultOf(ended)
        self.assertEqual(signal.getsignal(signal.SIGPIPE), signal.SIG_IGN)

    def test_aborted(self) -> None:
        """A mount that fails and is still there was aborted."""
        ended = self.mount()
        self.end(RuntimeError(1))
        failure = self.failureResultOf(ended, MountFailed)
        self.assertEqual(str(failure.value), f"the mount at {POINT} was aborted")

    def test_cannot_mount(self) -> None:
        """One that fails before the kernel has it cannot be mounted."""
        ended = self.mounting.mount()
        self.end(RuntimeError(1))
        failure = self.failureResultOf(ended, MountFailed)
        self.assertIn(f"cannot mount at {POINT}", str(failure.value))
        self.assertEqual(self.mounted, 0)

    def test_unmount(self) -> None:
        """The own mount is taken away with descriptors that were kept for that."""
        self.assertEqual(len(self.mounting._reserved), UNMOUNT_RESERVED_FDS)
        ended = self.mount()
        unmounted = self.mounting.unmount()
        self.assertEqual(self.ran, [[fusermount(), "-u", "-z", "-q", "--", POINT]])
        self.assertNoResult(unmounted)
        self.end()
        self.successResultOf(unmounted)
        self.successResultOf(ended)

    def test_never_mounted(self) -> None:
        """Without a mount nothing is taken away, and the descriptors are closed."""
        self.there = OWN
        self.successResultOf(self.mounting.unmount())
        self.assertEqual((self.ran, self.mounting._reserved), ([], []))

    def test_ended_already(self) -> None:
        """Nor is one that has ended, though another is there now."""
        ended = self.mount()
        self.end()
        self.successResultOf(ended)
        self.there = BEFORE
        self.successResultOf(self.mounting.unmount())
        self.assertEqual(self.ran, [])

    def test_another_over_it(self) -> None:
        """What is mounted over the own mount stays; waiting for the end is bounded."""
        self.mount()
        self.there = OTHER
        unmounted = self.mounting.unmount()
        self.clock.pump([UNMOUNT_TIMEOUT / 10] * 11)
        self.successResultOf(unmounted)
        self.assertEqual(self.ran, [])

    def test_in_the_making(self) -> None:
        """A mount that the kernel has only now is taken away; what was there before is not."""
        self.there = BEFORE
        self.mounting.mount()
        unmounted = self.mounting.unmount()
        self.assertEqual(self.ran, [])
        self.there = OWN
        self.clock.advance(UNMOUNT_TIMEOUT / 5)
        self.assertEqual(len(self.ran), 1)
        self.end()
        self.successResultOf(unmounted)
