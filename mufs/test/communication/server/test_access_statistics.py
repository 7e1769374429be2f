"""What clients ask for of each image."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.access_statistics import MEMORY, MOST_IMAGES, AccessStatistics


class DemandTests(SynchronousTestCase):
    """Which images are hot."""

    def setUp(self) -> None:
        """Have nothing opened yet."""
        self.clock = Clock()
        self.demand = AccessStatistics(self.clock)

    def rates(self) -> dict[bytes, float]:
        """Bytes a second of each image."""
        return {image.path: rate for image, rate in self.demand}

    def test_steady(self) -> None:
        """Asked for at a steady rate, an image comes to that rate, and falls when that ends."""
        image = self.demand.opened(b"disk.img")
        for _ in range(int(10 * MEMORY)):
            self.clock.advance(1)
            self.demand.asked(image, 5000)
        self.assertEqual(round(self.rates()[b"disk.img"], -2), 5000)
        self.clock.advance(MEMORY)
        self.assertEqual(round(self.rates()[b"disk.img"], -2), 1900)
        self.assertEqual((image.requests, image.bytes_requested), (600, 3_000_000))

    def test_unused(self) -> None:
        """What nobody has asked for has the rate 0, also after years."""
        self.demand.opened(b"disk.img")
        self.clock.advance(1e9)
        self.assertEqual(self.rates(), {b"disk.img": 0})

    def test_set_back(self) -> None:
        """A clock that is set back by years changes no rate, and is no error."""
        self.clock.advance(1e9)
        image = self.demand.opened(b"disk.img")
        self.demand.asked(image, 6000)
        self.clock.rightNow = 0.0
        self.assertEqual(self.rates(), {b"disk.img": 6000 / MEMORY})
        self.demand.asked(image, 6000)
        self.assertEqual(self.rates(), {b"disk.img": 12000 / MEMORY})

    def test_one_path(self) -> None:
        """However often a path is opened, it is one image."""
        first, second = (self.demand.opened(b"disk.img") for _ in range(2))
        self.assertIs(first, second)
        self.assertEqual(first.opens, 2)

    def test_bounded(self) -> None:
        """Of very many images those are forgotten that were asked for longest ago."""
        used = self.demand.opened(b"used")
        for number in range(3 * MOST_IMAGES):
            self.demand.opened(b"image%d" % number)
            self.demand.asked(used, 1)
        rates = self.rates()
        self.assertEqual(len(rates), MOST_IMAGES)
        self.assertIn(b"used", rates)
        self.assertNotIn(b"image0", rates)

    def test_forgotten(self) -> None:
        """One that was forgotten while it was open is there again when it is asked for."""
        image = self.demand.opened(b"old")
        for number in range(MOST_IMAGES):
            self.demand.opened(b"image%d" % number)
        self.assertNotIn(b"old", self.rates())
        self.demand.asked(image, 7)
        self.assertIn(b"old", self.rates())
