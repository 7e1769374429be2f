"""Numbers with units."""

from twisted.trial.unittest import SynchronousTestCase

from mufs.units import format_bytes, format_duration


class UnitTests(SynchronousTestCase):
    """Formatted numbers."""

    def test_bytes(self) -> None:
        """Each number has a unit that fits its size."""
        self.assertEqual(
            [format_bytes(n) for n in (0, 1023, 1536, 3 << 30, 5 << 40)],
            ["0 B", "1023 B", "1.5 KiB", "3.0 GiB", "5.0 TiB"],
        )

    def test_durations(self) -> None:
        """A duration has its largest unit and the next smaller one."""
        self.assertEqual(
            [format_duration(n) for n in (0.9, 59, 61, 3600, 86399, 2 * 86400 + 3601)],
            ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "23 h 59 min", "2 d 1 h"],
        )
