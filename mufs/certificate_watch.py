"""How long this host's certificate is still valid."""

from collections.abc import Callable
from datetime import datetime
from time import time

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mufs.repeated_call import RepeatedCall

EXPIRY_WARNING_SECONDS = 30 * 86400.0
"""Seconds before a certificate expires from which on the log warns."""

CHECK_INTERVAL = 86400.0
"""Seconds from one warning to the next."""


class CertificateWatch(RepeatedCall):
    """Warns once a day while the certificate of this host is about to expire."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        expires: Callable[[], datetime | None],
        now: Callable[[], float] = time,
    ) -> None:
        """
        @param expires: when the certificate in use expires; C{None} if there is none.
        @param now: the time of day, in seconds since 1970.
        """
        self._expires = expires
        self._now = now
        super().__init__(clock, CHECK_INTERVAL, self._check)

    def days_left(self) -> float | None:
        """Days until it expires, below 0 afterwards; C{None} if there is no certificate."""
        expires = self._expires()
        return None if expires is None else (expires.timestamp() - self._now()) / 86400

    def _check(self) -> None:
        expires, left = self._expires(), self.days_left()
        if expires is None or left is None or left * 86400 > EXPIRY_WARNING_SECONDS:
            return
        day = f"{expires:%Y-%m-%d}"
        if left <= 0:
            self._log.warn("the certificate of this host expired on {day}: renew it", day=day)
        else:
            text = "the certificate of this host expires in {left:.0f} days, on {day}: renew it"
            self._log.warn(text, left=left, day=day)
