"""How much clients read of each image."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.access_statistics import (
    AVERAGING_SECONDS,
    MAX_TRACKED_IMAGES,
    AccessStatistics,
)


class AccessStatisticsTests(SynchronousTestCase):
    """Which images are hot."""

    def setUp(self) -> None:
        """No image was opened yet."""
        self.clock = Clock()
        self.statistics = AccessStatistics(self.clock)

    def rates(self) -> dict[bytes, float]:
        """Bytes a second of each image."""
        return {image.path: rate for image, rate in self.statistics}

    def test_steady(self) -> None:
        """The rate of an image approaches that of its READs, and falls when they end."""
        image = self.statistics.opened(b"disk.img")
        for _ in range(int(10 * AVERAGING_SECONDS)):
            self.clock.advance(1)
            self.statistics.note_read(image, 5000)
        self.assertEqual(round(self.rates()[b"disk.img"], -2), 5000)
        self.clock.advance(AVERAGING_SECONDS)
        self.assertEqual(round(self.rates()[b"disk.img"], -2), 1900)
        self.assertEqual((image.requests, image.bytes_requested), (600, 3_000_000))

    def test_unused(self) -> None:
        """An image that nobody reads has the rate 0, also after years."""
        self.statistics.opened(b"disk.img")
        self.clock.advance(1e9)
        self.assertEqual(self.rates(), {b"disk.img": 0})

    def test_set_back(self) -> None:
        """A clock that is set back by years changes no rate, and raises nothing."""
        self.clock.advance(1e9)
        image = self.statistics.opened(b"disk.img")
        self.statistics.note_read(image, 6000)
        self.clock.rightNow = 0.0
        self.assertEqual(self.rates(), {b"disk.img": 6000 / AVERAGING_SECONDS})
        self.statistics.note_read(image, 6000)
        self.assertEqual(self.rates(), {b"disk.img": 12000 / AVERAGING_SECONDS})

    def test_one_path(self) -> None:
        """A path that is opened several times is one image."""
        first, second = (self.statistics.opened(b"disk.img") for _ in range(2))
        self.assertIs(first, second)
        self.assertEqual(first.opens, 2)

    def test_bounded(self) -> None:
        """When there are too many images, the least recently used ones are forgotten."""
        used = self.statistics.opened(b"used")
        for number in range(3 * MAX_TRACKED_IMAGES):
            self.statistics.opened(b"image%d" % number)
            self.statistics.note_read(used, 1)
        rates = self.rates()
        self.assertEqual(len(rates), MAX_TRACKED_IMAGES)
        self.assertIn(b"used", rates)
        self.assertNotIn(b"image0", rates)

    def test_forgotten(self) -> None:
        """An image that was forgotten while it was open is tracked again when it is read."""
        image = self.statistics.opened(b"old")
        for number in range(MAX_TRACKED_IMAGES):
            self.statistics.opened(b"image%d" % number)
        self.assertNotIn(b"old", self.rates())
        self.statistics.note_read(image, 7)
        self.assertIn(b"old", self.rates())
