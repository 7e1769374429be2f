"""When the scavenger class is served."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.items import SCAVENGER, SERVICE_CLASSES, Entry
from mufs.cache.server.queue import MulticastQueue
from mufs.cache.server.sent import MAX_BYTES_AWAITED, SentWindow
from mufs.communication.server.pacing import Pace
from mufs.communication.server.scavenger import (
    MIN_TIMER_DELAY,
    SCAVENGER_DELAY,
    SCAVENGER_DIVISOR,
    ScavengerSchedule,
)
from mufs.test.support.doubles import ImageInMemory, RecordingReader
from mufs.wire.channel import Priority, Read
from mufs.wire.pages import BLOCK, PAGE

FIRST = (SCAVENGER, *Priority)
"""The service classes when the scavenger class has its turn beside others."""


class ScavengerScheduleTests(SynchronousTestCase):
    """A schedule beside a queue with a greedy client and another one."""

    def setUp(self) -> None:
        """Have nothing queued."""
        self.clock = Clock()
        self.clock.advance(100)
        self.queue = MulticastQueue(SentWindow())
        self.woken = 0
        self.images = 10
        pace = Pace(self.clock, floor=1e8, ceiling=1e8, start=1e8)
        self.schedule = ScavengerSchedule(self.queue, pace, self.clock, wake=self.wake)
        self.greedy, self.other = RecordingReader("greedy"), RecordingReader("other")

    def wake(self) -> None:
        """Count how often it is called."""
        self.woken += 1

    def request_too_much(self) -> None:
        """Queue entries of which all are in the scavenger class."""
        size = MAX_BYTES_AWAITED + 2 * BLOCK
        read = Read(1, 1, 0, size, Priority.BLOCKED)
        self.queue.request(self.greedy, ImageInMemory(bytes(size), image=2), read)
        self.assertIsNone(self.queue.take(Priority))

    def serve_other(self) -> None:
        """Take an entry of a client that is not greedy."""
        self.images += 1
        read = Read(1, 1, 0, PAGE, Priority.AHEAD)
        self.queue.request(self.other, ImageInMemory(bytes(PAGE), image=self.images), read)
        self.take(Priority)

    def take(self, classes: tuple[int, ...] | type[Priority]) -> Entry:
        """Take an entry from the queue."""
        entry = self.queue.take(classes, BLOCK)
        assert isinstance(entry, Entry)
        self.schedule.note_dequeued(entry)
        return entry

    def test_alone(self) -> None:
        """While no others are served, all classes are, by priority."""
        self.request_too_much()
        for _ in range(2):
            self.assertEqual(self.schedule.classes(False), SERVICE_CLASSES)
            entry = self.take(SERVICE_CLASSES)
            self.schedule.charge_sent(entry, self.clock.seconds())

    def test_beside_others(self) -> None:
        """Beside others it has its turn for one item, while nothing else is read or ready."""
        self.request_too_much()
        self.serve_other()
        self.assertEqual(self.schedule.classes(False), tuple(Priority))
        self.assertEqual(self.schedule.classes(True), FIRST)
        entry = self.take(FIRST)
        took = entry.cost * 8 / 1e8
        self.schedule.charge_sent(entry, self.clock.seconds())
        self.clock.advance(SCAVENGER_DIVISOR * took - 0.001)
        self.assertEqual(self.schedule.classes(True), tuple(Priority))
        self.clock.advance(0.002)
        self.assertEqual(self.schedule.classes(True), FIRST)

    def test_charged_time(self) -> None:
        """It pays for the time that sending took if that was longer than the rate implies."""
        self.request_too_much()
        self.serve_other()
        entry, began = self.take(FIRST), self.clock.seconds()
        self.clock.advance(0.02)
        self.serve_other()
        self.schedule.charge_sent(entry, began)
        self.clock.advance(SCAVENGER_DIVISOR * 0.02 - 0.001)
        self.assertEqual(self.schedule.classes(True), tuple(Priority))

    def test_others_gone(self) -> None:
        """Some time after others were served it gets everything again."""
        self.request_too_much()
        self.serve_other()
        self.clock.advance(SCAVENGER_DELAY)
        self.assertEqual(self.schedule.classes(False), SERVICE_CLASSES)

    def test_own_reads(self) -> None:
        """What the greedy client reads at another priority does not count as served to others."""
        self.request_too_much()
        entry = Entry(ImageInMemory(bytes(PAGE)), 0, 0, 1, None, {self.greedy: {2: 1}}, 0)
        self.schedule.note_dequeued(entry)
        self.assertEqual(self.schedule.classes(False), SERVICE_CLASSES)

    def test_wakes(self) -> None:
        """It wakes the controller once, when the scavenger class has its turn."""
        self.request_too_much()
        self.serve_other()
        self.schedule.charge_sent(self.take(FIRST), self.clock.seconds() - 0.005)
        self.schedule.schedule()
        self.schedule.schedule()
        self.clock.advance(SCAVENGER_DIVISOR * 0.005)
        self.assertEqual(self.woken, 0)
        self.clock.advance(SCAVENGER_DELAY)
        self.assertEqual(self.woken, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nothing_to_wake_for(self) -> None:
        """Nothing is timed while the scavenger class is empty."""
        self.schedule.schedule()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """Once stopped, it does not wake the controller."""
        self.request_too_much()
        self.schedule.schedule()
        self.schedule.stop()
        self.clock.advance(MIN_TIMER_DELAY)
        self.assertEqual(self.woken, 0)
