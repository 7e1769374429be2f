"""Pulls that the server asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client.pull import PROGRESS_INTERVAL, Progress
from mufs.filesystem.client.server_pulls import KEY_DELAY, MAX_SERVER_PULLS, ServerPulls
from mufs.wire.channel import Framer, ProtocolError, Type
from mufs.wire.metadata import ROOT, Caller, Pull, Pulled, decode


class Pulls:
    """Begins pulls that the test ends."""

    def __init__(self) -> None:
        self.running: dict[bytes, tuple[Deferred[Progress], Callable[[Progress], None]]] = {}
        self.asked: list[tuple[Caller, float]] = []
        self.cancelled: list[bytes] = []

    def pull(
        self,
        path: bytes,
        caller: Caller,
        report: Callable[[Progress], None],
        *,
        key_delay: float,
    ) -> Deferred[Progress]:
        """See L{mufs.filesystem.client.pull.Pulls.pull}."""
        if path == b"busy":
            raise OSError("too many")
        self.asked.append((caller, key_delay))
        done: Deferred[Progress] = Deferred(lambda _: self.cancelled.append(path))
        self.running[path] = done, report
        return done


class ServerPullsTests(SynchronousTestCase):
    """One connection, on which pulls are asked for."""

    def setUp(self) -> None:
        """Nothing was asked for."""
        self.clock = Clock()
        self.pulls = Pulls()
        self.packets: list[bytes] = []
        pulls: Any = self.pulls
        self.server_pulls = ServerPulls(pulls, self.clock, self.packets.append)

    def ask(self, number: int, path: bytes = b"image") -> None:
        """The server asks for a pull."""
        self.server_pulls.requested(Pull(number, path))

    def told(self) -> list[Pulled]:
        """What the server was told since the last call."""
        packets = [each for packet in self.packets for each in Framer().feed(packet)]
        self.packets.clear()
        self.assertEqual({kind for kind, _, _ in packets} - {Type.PULLED}, set())
        return [decode(Pulled, body) for _, _, body in packets]

    def test_done(self) -> None:
        """The server is told of the progress, and of the end."""
        self.ask(3)
        self.assertEqual(self.pulls.asked, [(ROOT, KEY_DELAY)])
        done, report = self.pulls.running[b"image"]
        report(Progress(100, 40, 40, 0, True))
        self.assertEqual(self.told(), [Pulled(3, 40, 100, False)])
        self.clock.advance(PROGRESS_INTERVAL)
        done.callback(Progress(100, 100, 60, 40, True))
        self.clock.advance(0)
        self.assertEqual(self.told(), [Pulled(3, 100, 100, True)])

    def test_failed(self) -> None:
        """A pull that fails ends with the reason, and what it had until then."""
        self.ask(3)
        done, report = self.pulls.running[b"image"]
        report(Progress(100, 40, 40, 0, True))
        self.told()
        done.errback(OSError(28, "No space left on device"))
        self.clock.advance(PROGRESS_INTERVAL)
        self.assertEqual(self.told(), [Pulled(3, 40, 100, True, "No space left on device")])

    def test_cannot_begin(self) -> None:
        """So does one that cannot begin; its number can be used again after that."""
        for _ in range(2):
            self.ask(3, b"busy")
            self.clock.advance(PROGRESS_INTERVAL)
            self.assertEqual(self.told(), [Pulled(3, 0, 0, True, "too many")])

    def test_ends_late(self) -> None:
        """However soon a pull ends, the server is told a second after it asked."""
        self.ask(3)
        self.pulls.running[b"image"][0].callback(Progress(100, 100, 0, 0, True))
        self.clock.advance(PROGRESS_INTERVAL * 0.99)
        self.assertEqual(self.told(), [])
        self.clock.advance(PROGRESS_INTERVAL * 0.02)
        self.assertEqual(self.told(), [Pulled(3, 100, 100, True)])

    def test_cancelled(self) -> None:
        """Without a path the pull of that number is cancelled; of an unknown one nothing is."""
        self.ask(3)
        self.ask(4, b"")
        self.assertEqual(self.pulls.cancelled, [])
        self.ask(3, b"")
        self.assertEqual(self.pulls.cancelled, [b"image"])
        self.clock.advance(PROGRESS_INTERVAL)
        self.assertEqual(self.told(), [Pulled(3, 0, 0, True, "interrupted")])

    def test_same_image(self) -> None:
        """An image that is being pulled for the server is not pulled twice."""
        self.ask(3)
        self.ask(4)
        self.clock.advance(PROGRESS_INTERVAL)
        (told,) = self.told()
        self.assertEqual((told.number, told.ended), (4, True))
        self.assertEqual(len(self.pulls.asked), 1)

    def test_too_many(self) -> None:
        """A number in use, or one pull too many, is an error of the server."""
        self.ask(0)
        self.assertRaises(ProtocolError, self.ask, 0, b"other")
        for number in range(1, MAX_SERVER_PULLS):
            self.ask(number, b"%d" % number)
        self.assertRaises(ProtocolError, self.ask, 99, b"99")
        # One that has ended counts until the server is told.
        self.pulls.running[b"1"][0].callback(Progress(1, 1, 0, 0, True))
        self.assertRaises(ProtocolError, self.ask, 99, b"99")
        self.clock.advance(PROGRESS_INTERVAL)
        self.ask(99, b"99")

    def test_disconnected(self) -> None:
        """A lost connection cancels its pulls, and nothing of them is told on the next one."""
        self.ask(3)
        self.server_pulls.disconnected()
        self.assertEqual(self.pulls.cancelled, [b"image"])
        self.ask(3)
        self.clock.advance(PROGRESS_INTERVAL)
        self.assertEqual(self.told(), [])
        self.pulls.running[b"image"][0].callback(Progress(100, 100, 0, 0, True))
        self.clock.advance(0)
        self.assertEqual(self.told(), [Pulled(3, 100, 100, True)])
