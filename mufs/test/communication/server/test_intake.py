"""Whether more is read from a client, and when it is given up."""

from __future__ import annotations

from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure as Error
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.intake import Intake, Pause
from mufs.communication.server.limits import (
    CLOSE_TIMEOUT,
    CPU_BURST_SECONDS,
    CPU_FRACTION,
    HELLO_TIMEOUT,
    IDLE_TIMEOUT,
    MAX_WAITING_BYTES,
    MIN_THROTTLE_DELAY,
    STALL_TIMEOUT,
    TURN_SECONDS,
    Limits,
)
from mufs.test.support.channels import PING, TwoClientsTestCase
from mufs.test.support.doubles import FakeTransport


class IntakeTestCase(SynchronousTestCase):
    """The intake of one client."""

    def setUp(self) -> None:
        """A client that was welcomed, and another host."""
        self.clock = Clock()
        self.spent = 0.0
        self.limits = Limits(self.clock, lambda: self.spent)
        self.host = self.limits.add(self, "192.0.2.1")
        self.other = self.limits.add(object(), "192.0.2.2")
        self.transport = FakeTransport()
        self.events: list[str] = []
        self.closed: list[str] = []
        self.intake = Intake(
            self.clock,
            self.host,
            self.transport,
            answer=lambda: self.events.append("answer"),
            read=lambda: self.events.append("read"),
            close=self.closed.append,
        )
        self.intake.welcomed()

    def assert_reading(self, expected: bool) -> None:
        """The transport brings the client's bytes, or does not."""
        self.assertEqual(self.transport.producerState, "producing" if expected else "paused")

    def overspend(self, seconds: float) -> None:
        """The host has used more than its share of the processor, and another host is active."""
        self.limits.note_request(self.other)
        self.host.charge(CPU_BURST_SECONDS + seconds)


class PauseTests(IntakeTestCase):
    """The reasons to pause."""

    def test_each_reason(self) -> None:
        """Any reason stops reading, and when it has gone, answers and reading go on."""
        for reason in Pause:
            self.intake.pause(reason)
            self.assert_reading(False)
            self.assertFalse(self.intake.may_read_on())
            self.intake.resume(reason)
            self.assert_reading(True)
            self.assertEqual(self.events, ["answer", "read"])
            self.events.clear()

    def test_together(self) -> None:
        """Reading goes on when the last reason has gone, in whatever order they go."""
        for first, *others in ([*Pause], [*reversed(Pause)]):
            for reason in Pause:
                self.intake.pause(reason)
            self.intake.resume(first)
            self.assert_reading(False)
            self.assertEqual(self.events, ["answer"])
            for reason in others:
                self.assert_reading(False)
                self.intake.resume(reason)
            self.assert_reading(True)
            self.assertEqual(self.events, ["answer"] * len(Pause) + ["read"])
            self.events.clear()

    def test_not_paused(self) -> None:
        """A reason that was not there cannot go."""
        for reason in Pause:
            self.intake.resume(reason)
        self.assertEqual(self.events, [])

    def test_full_again(self) -> None:
        """When what is answered fills the send buffer again, nothing is read."""
        self.intake._answer = self.intake.send_buffer_full
        self.intake.send_buffer_full()
        self.intake.send_buffer_empty()
        self.assertEqual(self.intake.reasons, {Pause.SEND_BUFFER_FULL})
        self.assert_reading(False)
        self.assertEqual(self.events, [])

    def test_what_may_be_done(self) -> None:
        """A full buffer stops all answers, a throttled host lookups, a backlog neither."""
        found = {}
        for reason in Pause:
            self.intake.pause(reason)
            found[reason] = self.intake.may_send, self.intake.may_work
            self.intake.resume(reason)
        expected = {
            Pause.SEND_BUFFER_FULL: (False, False),
            Pause.METADATA_BACKLOG: (True, True),
            Pause.THROTTLED: (True, False),
        }
        self.assertEqual(found, expected)

    def test_closed(self) -> None:
        """A connection that is closing is neither paused nor resumed, nor read."""
        self.intake.pause(Pause.METADATA_BACKLOG)
        self.intake.begin_close()
        self.transport.loseConnection()
        self.intake.resume(Pause.METADATA_BACKLOG)
        self.intake.send_buffer_full()
        self.intake.send_buffer_empty()
        self.overspend(1)
        self.intake.throttle()
        self.assertFalse(self.intake.may_read_on())
        self.assertEqual(self.events, [])
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)


class TurnTests(IntakeTestCase):
    """How long one client's requests are handled at a time."""

    def test_turn(self) -> None:
        """A turn ends after so much processor time; the rest is read when others had theirs."""
        self.intake.begin_turn()
        self.assertTrue(self.intake.may_read_on())
        self.spent += 2 * TURN_SECONDS
        self.assertFalse(self.intake.may_read_on())
        self.intake.end_turn()
        self.assert_reading(False)
        self.clock.advance(0)
        self.assert_reading(True)
        self.assertEqual(self.events, ["answer", "read"])
        self.assertEqual(self.host.held_back, 0)

    def test_short(self) -> None:
        """After a short turn nothing is paused."""
        self.intake.begin_turn()
        self.assertTrue(self.intake.may_read_on())
        self.intake.end_turn()
        self.assert_reading(True)

    def test_charged(self) -> None:
        """The host is charged for its turns."""
        before = self.host._cpu_credit
        self.intake.begin_turn()
        self.spent += 0.25
        self.intake.end_turn()
        self.assertEqual(self.host._cpu_credit, before - 0.25)

    def test_waits_for_too_much(self) -> None:
        """A host that waits for too much is not read until it no longer does."""
        self.host.share.waiting = MAX_WAITING_BYTES + 1
        self.intake.begin_turn()
        self.assertFalse(self.intake.may_read_on())
        self.intake.end_turn()
        self.clock.advance(1)
        self.assert_reading(False)
        self.host.share.waiting = MAX_WAITING_BYTES
        self.clock.advance(MIN_THROTTLE_DELAY)
        self.assert_reading(True)
        self.assertGreater(self.host.held_back, 0)

    def test_throttled(self) -> None:
        """A host that has used too much waits until its share has made up for it."""
        self.overspend(0.05)
        self.intake.throttle()
        self.assert_reading(False)
        for _ in range(9):
            self.clock.advance(0.05 / CPU_FRACTION / 10)
            self.limits.note_request(self.other)
        self.assert_reading(False)
        self.clock.advance(0.05 / CPU_FRACTION / 10 + MIN_THROTTLE_DELAY)
        self.assert_reading(True)
        self.assertEqual(self.host.held_back, 1)


class TimeoutTests(IntakeTestCase):
    """When a client is given up."""

    def test_no_hello(self) -> None:
        """A client that says no HELLO is given up."""
        Intake(
            self.clock,
            self.host,
            FakeTransport(),
            answer=lambda: None,
            read=lambda: None,
            close=self.closed.append,
        )
        self.clock.advance(HELLO_TIMEOUT - 1)
        self.assertEqual(self.closed, [])
        self.clock.advance(1)
        self.assertEqual(self.closed, ["no HELLO came"])

    def test_idle(self) -> None:
        """A client of which nothing comes is given up."""
        self.intake.begin_turn()
        self.clock.advance(IDLE_TIMEOUT - 1)
        self.assertEqual(self.closed, [])
        self.clock.advance(1)
        self.assertEqual(self.closed, ["nothing came for 60 s"])

    def test_active(self) -> None:
        """One that sends something now and then is not."""
        for _ in range(10):
            self.clock.advance(IDLE_TIMEOUT - 1)
            self.intake.begin_turn()
        self.assertEqual(self.closed, [])

    def test_not_read(self) -> None:
        """A client that is not read cannot be taken for idle, nor as soon as it is read again."""
        self.intake.pause(Pause.METADATA_BACKLOG)
        for _ in range(10):
            self.clock.advance(IDLE_TIMEOUT - 1)
        self.intake.resume(Pause.METADATA_BACKLOG)
        self.intake.begin_turn()  # as the channel does when it reads on
        self.clock.advance(IDLE_TIMEOUT - 1)
        self.assertEqual(self.closed, [])
        self.clock.advance(1)
        self.assertEqual(len(self.closed), 1)

    def test_stalled(self) -> None:
        """A client that reads nothing is given up, however often its buffer is said to be full."""
        self.intake.send_buffer_full()
        self.clock.advance(STALL_TIMEOUT - 1)
        self.intake.send_buffer_full()
        self.assertEqual(self.closed, [])
        self.clock.advance(1)
        self.assertEqual(self.closed, ["it read nothing of what was sent to it for 60 s"])

    def test_full_twice(self) -> None:
        """However often its buffer was said to be full, when it has room nothing is awaited."""
        self.intake.send_buffer_full()
        self.intake.send_buffer_full()
        self.intake.send_buffer_empty()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)  # the one for idle clients

    def test_slow(self) -> None:
        """One that reads something now and then is not."""
        for _ in range(10):
            self.intake.send_buffer_full()
            self.clock.advance(STALL_TIMEOUT - 1)
            self.intake.send_buffer_empty()
        self.assertEqual(self.closed, [])

    def test_close(self) -> None:
        """While a connection is closing nothing else is waited for, and that not for ever."""
        self.intake.send_buffer_full()
        self.intake.begin_close()
        self.clock.advance(CLOSE_TIMEOUT - 1)
        self.assertEqual(self.closed, [])
        self.clock.advance(1)
        self.assertEqual(self.closed, ["it has not ended 10 s after it was closed here"])

    def test_stop(self) -> None:
        """A connection that has ended leaves no timer."""
        self.overspend(1)
        self.intake.send_buffer_full()
        self.intake.throttle()
        self.intake.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ChannelTests(TwoClientsTestCase):
    """The same through channels."""

    def test_silent(self) -> None:
        """A client that shows no sign of life is cut off after a while, and others are not."""
        while self.clock.seconds() < IDLE_TIMEOUT + 2:
            self.honest.dataReceived(PING)
            self.clock.advance(5)
        self.assertEqual((self.its_wire.ended, self.wire.ended), (True, False))
        self.assertEqual(self.server.factory.limits.cut_off, 1)

    def test_takes_nothing(self) -> None:
        """A client that takes nothing of what is sent to it is cut off after a while."""
        self.full(self.its_wire)
        self.clock.advance(STALL_TIMEOUT - 1)
        self.assertFalse(self.its_wire.ended)
        self.clock.advance(2)
        self.assertTrue(self.its_wire.ended)

    def test_takes_little(self) -> None:
        """One that takes something now and then is not, though it cannot be heard meanwhile."""
        for _ in range(10):
            self.full(self.its_wire)
            self.clock.advance(STALL_TIMEOUT - 1)
            self.full(self.its_wire, False)
        self.assertFalse(self.its_wire.ended)

    def test_does_not_end(self) -> None:
        """A connection that does not end after it was closed is aborted."""
        self.greedy.close("the test wants it")
        self.assertFalse(self.its_wire.aborted)
        self.clock.advance(CLOSE_TIMEOUT)
        self.assertTrue(self.its_wire.aborted)
        self.assertEqual(self.server.factory.limits.cut_off, 1)

    def test_nothing_left(self) -> None:
        """Connections that end leave nothing behind, whatever they were waiting for."""
        self.full(self.its_wire)
        self.server.spent += 1
        self.greedy.host.charge(1)
        self.honest.dataReceived(PING)
        for channel in (self.greedy, self.honest):
            channel.connectionLost(Error(ConnectionLost()))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.server.factory.limits.connections, 0)
