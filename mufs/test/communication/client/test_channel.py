"""The client's end of the request channel, in memory."""

from __future__ import annotations

import errno
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure as Error
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mufs.communication.client.channel import (
    ANSWER_TIMEOUT,
    ChannelLost,
    ClientChannel,
    ClientChannelFactory,
    IChannelUser,
    Refused,
)
from mufs.test.support.doubles import FakeTransport, make_attributes
from mufs.wire.channel import Data, Framer, Key, Sent, Type, pack_tagged, parse_tagged
from mufs.wire.metadata import (
    VERSION,
    At,
    Attributes,
    Close,
    Failure,
    Opened,
    Pull,
    Report,
    Welcome,
    decode,
    encode,
)


@implementer(IChannelUser)
class User:
    """Whom the channel tells: remembers whether there is a connection, and which reads failed."""

    def __init__(self) -> None:
        self.is_connected = False
        self.silences = 0
        self.failures: list[tuple[int, int | None]] = []

    def connected(self, channel: ClientChannel, welcome: Welcome) -> None:
        """See L{IChannelUser.connected}."""
        self.is_connected = True

    def moved(self, welcome: Welcome) -> None:
        """See L{IChannelUser.moved}."""

    def refused(self, reason: Refused) -> None:
        """See L{IChannelUser.refused}."""

    def silent(self) -> None:
        """See L{IChannelUser.silent}."""
        self.silences += 1

    def disconnected(self) -> None:
        """See L{IChannelUser.disconnected}."""
        self.is_connected = False

    def sent(self, sent: Sent) -> None:
        """See L{IChannelUser.sent}."""

    def key(self, key: Key) -> None:
        """See L{IChannelUser.key}."""

    def data(self, data: Data) -> None:
        """See L{IChannelUser.data}."""

    def segments(self, packets: bytes) -> None:
        """See L{IChannelUser.segments}."""

    def pull(self, pull: Pull) -> None:
        """See L{IChannelUser.pull}."""

    def report(self) -> Report:
        """See L{IChannelUser.report}."""
        return Report(4, 3, 20, 700, True, "working")

    def transfer_expired(self, tag: int) -> None:
        """See L{IChannelUser.transfer_expired}."""

    def failed(self, tag: int, error: OSError) -> None:
        """See L{IChannelUser.failed}."""
        self.failures.append((tag, error.errno))


class ClientChannelTestCase(SynchronousTestCase):
    """Has a channel that was greeted."""

    def setUp(self) -> None:
        """Connect, and answer HELLO."""
        self.clock = Clock()
        self.user = User()
        self.channel: Any = ClientChannel(self.user, self.clock, "here")
        self.transport = FakeTransport()
        self.transport.protocol = self.channel
        self.channel.makeConnection(self.transport)
        ((kind, _, body),) = self.sent()
        self.assertEqual(kind, Type.HELLO)
        self.answer(Type.WELCOME, parse_tagged(body)[0], Welcome(VERSION, "", 0, ("", 0), 1400))
        self.assertTrue(self.user.is_connected)

    def sent(self) -> list[tuple[int, int, bytes]]:
        """The packets that the client wrote since the last look."""
        packets = list(Framer().feed(self.transport.value()))
        self.transport.clear()
        return packets

    def answer(self, kind: Type, tag: int, body: object) -> None:
        """Let the server's packet come in."""
        data = b"" if body is None else encode(body)
        self.channel.dataReceived(pack_tagged(kind, tag, data))


class SilenceTests(ClientChannelTestCase):
    """A connection without requests."""

    def idle(self, seconds: float, answer_after: float, late: float) -> None:
        """
        Let time pass while the server answers PING.

        @param answer_after: seconds that its answers take.
        @param late: seconds by which each timer is late.
        """
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end and not self.transport.aborted:
            self.clock.advance(
                min(call.getTime() for call in self.clock.getDelayedCalls())
                - self.clock.seconds()
                + late
            )
            for kind, _, body in self.sent():
                self.assertEqual(kind, Type.PING)
                self.clock.advance(answer_after)
                self.answer(Type.PONG, parse_tagged(body)[0], None)

    def test_kept(self) -> None:
        """An idle connection is kept, however soon or late the answers to PING come."""
        for answer_after in (0.0, 0.001, 0.5, ANSWER_TIMEOUT / 5):
            for late in (0.0, 0.0005, 0.01, 0.3):
                self.idle(100, answer_after, late)
                self.assertFalse(self.transport.aborted, (answer_after, late))

    def test_reports(self) -> None:
        """Every five seconds a report is sent, whatever else is said."""
        for _ in range(50):
            self.clock.advance(ANSWER_TIMEOUT / 20)
            self.answer(Type.PONG, 0, None)
        pings = [parse_tagged(body)[1] for kind, _, body in self.sent() if kind == Type.PING]
        self.assertEqual([decode(Report, body) for body in pings], 5 * [self.user.report()])

    def test_ended(self) -> None:
        """A connection to a server that answers nothing ends after ANSWER_TIMEOUT."""
        for _ in range(round(ANSWER_TIMEOUT * 15)):
            self.clock.advance(0.1)
        self.assertTrue(self.transport.aborted)
        self.assertFalse(self.user.is_connected)


class AnswerTests(ClientChannelTestCase):
    """A server that leaves a request without an answer."""

    def setUp(self) -> None:
        """Make a request."""
        super().setUp()
        self.asked: Deferred[Any] = self.channel.ask(Type.GETATTR, At(b"path"), Attributes)
        self.sent()

    def test_silent(self) -> None:
        """One that says nothing at all, not even to a PING, is silent within a second."""
        self.clock.pump([0.05] * 20)
        self.assertEqual([kind for kind, _, _ in self.sent()], [Type.PING])
        self.assertEqual((self.user.silences, self.channel.is_silent), (1, True))
        self.answer(Type.PONG, 0, None)
        self.assertFalse(self.channel.is_silent)

    def test_answered(self) -> None:
        """Without requests nothing is watched, and nothing is left of it after the connection."""
        self.answer(Type.REPLY, 1, make_attributes())
        self.successResultOf(self.asked)
        self.clock.pump([0.25] * 8)
        self.assertEqual(self.user.silences, 0)
        self.channel.ask(Type.GETATTR, At(b"path"), Attributes).addErrback(lambda _: None)
        self.transport.loseConnection()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class AskTests(ClientChannelTestCase):
    """Requests about metadata."""

    def ask(self, kind: Type, answer: type) -> tuple[Deferred[Any], int]:
        """Make a request; its result and its tag."""
        asked = self.channel.ask(kind, At(b"path"), answer)
        ((sent, _, body),) = self.sent()
        self.assertEqual(sent, kind)
        return asked, parse_tagged(body)[0]

    def test_answered(self) -> None:
        """A request fires with the answer, decoded as its class."""
        asked, tag = self.ask(Type.GETATTR, Attributes)
        self.answer(Type.REPLY, tag, make_attributes(77))
        self.assertEqual(self.successResultOf(asked), make_attributes(77))

    def test_lost(self) -> None:
        """A request whose connection ends fails with ChannelLost."""
        asked, _ = self.ask(Type.GETATTR, Attributes)
        self.transport.loseConnection()
        self.failureResultOf(asked, ChannelLost)

    def test_cancelled(self) -> None:
        """The answer to a cancelled request is ignored."""
        asked, tag = self.ask(Type.GETATTR, Attributes)
        asked.cancel()
        self.failureResultOf(asked)
        self.answer(Type.REPLY, tag, make_attributes(77))
        self.assertEqual(self.sent(), [])
        self.assertFalse(self.transport.aborted)

    def test_opened_too_late(self) -> None:
        """An image that the server opens after the request was cancelled is closed again."""
        asked, tag = self.ask(Type.OPEN, Opened)
        asked.cancel()
        self.failureResultOf(asked)
        self.answer(Type.REPLY, tag, Opened(5, 1, 1, bytes(16), make_attributes(77)))
        ((kind, _, body),) = self.sent()
        self.assertEqual((kind, decode(Close, body)), (Type.CLOSE, Close(5)))

    def test_refused_too_late(self) -> None:
        """The failure of a cancelled open is ignored."""
        asked, tag = self.ask(Type.OPEN, Opened)
        asked.cancel()
        self.failureResultOf(asked)
        self.answer(Type.ERROR, tag, Failure.of(OSError(errno.ENOENT, "none")))
        self.assertEqual((self.sent(), self.user.failures), ([], []))
        # The same tag may be that of a READ from then on.
        self.answer(Type.ERROR, tag, Failure.of(OSError(errno.EIO, "bad sector")))
        self.assertEqual(self.user.failures, [(tag, errno.EIO)])

    def test_failed(self) -> None:
        """A request that the server cannot answer fails with its error, and no read does."""
        asked, tag = self.ask(Type.GETATTR, Attributes)
        self.answer(Type.ERROR, tag, Failure.of(OSError(errno.ENOENT, "none")))
        error = self.failureResultOf(asked, OSError).value
        self.assertEqual((error.errno, self.user.failures), (errno.ENOENT, []))


class FailedConnectTests(SynchronousTestCase):
    """Connections that end before the server welcomes this host."""

    def test_too_many(self) -> None:
        """A server that has too many connections refuses for now: the client waits."""
        user = User()
        factory = ClientChannelFactory(user, Clock(), "host")
        channel, transport = factory.buildProtocol(None), FakeTransport()
        transport.protocol = channel
        channel.makeConnection(transport)
        channel.dataReceived(pack_tagged(Type.ERROR, 0, encode(Failure("EAGAIN", "too many"))))
        self.assertFalse(transport.connected)
        self.assertEqual((factory.failed_connects, factory.last_connect_error), (1, "too many"))

    def test_connect_failed(self) -> None:
        """They are counted until a WELCOME, and a repeated reason is logged once."""
        lines: list[str] = []

        def observe(event: Any) -> None:
            lines.append(formatEvent(event))

        observer: Any = observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        factory = ClientChannelFactory(User(), Clock(), "host")
        welcome = Welcome(VERSION, "", 0, ("", 0), 1400)
        for reason, counted, said in (
            (ConnectionDone(), 1, 1), (ConnectionLost(), 2, 1), (OSError("odd"), 3, 2),
            (None, 0, 2), (OSError("odd"), 1, 3),
        ):  # fmt: skip
            channel, transport = factory.buildProtocol(None), FakeTransport()
            transport.protocol = channel
            channel.makeConnection(transport)
            if reason is None:
                channel.dataReceived(pack_tagged(Type.WELCOME, 0, encode(welcome)))
            channel.connectionLost(Error(reason or ConnectionDone()))
            found = [line for line in lines if line.startswith("waiting for the server: ")]
            self.assertEqual((factory.failed_connects, len(found)), (counted, said), reason)
