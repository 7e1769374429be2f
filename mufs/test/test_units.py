"""Numbers with units."""

from twisted.trial.unittest import SynchronousTestCase

from mufs.units import format_bytes


class UnitTests(SynchronousTestCase):
    """Formatted numbers."""

    def test_bytes(self) -> None:
        """Each number has a unit that fits its size."""
        self.assertEqual(
            [format_bytes(n) for n in (0, 1023, 1536, 3 << 30, 5 << 40)],
            ["0 B", "1023 B", "1.5 KiB", "3.0 GiB", "5.0 TiB"],
        )
