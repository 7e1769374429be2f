"""How long a certificate is still valid, and the warnings about it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mufs.certificate_watch import CHECK_INTERVAL, CertificateWatch

EXPIRES = datetime(2027, 3, 1, tzinfo=UTC)
DAY = 86400.0


class CertificateWatchTests(SynchronousTestCase):
    """A certificate that expires on one day."""

    def setUp(self) -> None:
        """Read the log."""
        self.clock = Clock()
        self.lines: list[str | None] = []

        observer: Any = self.note
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def note(self, event: LogEvent) -> None:
        """Keep the text of an event."""
        self.lines.append(formatEvent(event))

    def watch(self, days: float, expires: datetime | None = EXPIRES) -> CertificateWatch:
        """Begin to watch so many days before that."""
        begin = EXPIRES.timestamp() - days * DAY
        watch = CertificateWatch(self.clock, lambda: expires, lambda: begin + self.clock.seconds())
        watch.startService()
        self.addCleanup(watch.stopService)
        return watch

    def test_long(self) -> None:
        """More than 30 days before nothing is said."""
        watch = self.watch(30.5)
        self.assertEqual((self.lines, watch.days_left()), ([], 30.5))

    def test_daily(self) -> None:
        """From 30 days before on there is a warning each day, and afterwards another one."""
        self.watch(1.5)
        for _ in range(2):
            self.clock.advance(CHECK_INTERVAL)
        renew = "renew it"
        self.assertEqual(self.lines, [
            f"the certificate of this host expires in 2 days, on 2027-03-01: {renew}",
            f"the certificate of this host expires in 0 days, on 2027-03-01: {renew}",
            f"the certificate of this host expired on 2027-03-01: {renew}",
        ])  # fmt: skip

    def test_none(self) -> None:
        """Without a certificate there is nothing to say."""
        self.assertIs(self.watch(0, None).days_left(), None)
        self.assertEqual(self.lines, [])

    def test_stopped(self) -> None:
        """Nothing is checked once the service has ended."""
        self.watch(1).stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
