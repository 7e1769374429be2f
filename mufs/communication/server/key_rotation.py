"""When the keys of transfers are replaced, and how clients learn the new ones in time."""

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mufs.cache.server.sent import SentTransfer, SentWindow
from mufs.wire.sealing import Keys

KEY_DELIVERY_DELAY = 0.01
"""Seconds that new keys have to reach the clients before a transfer is sealed with them."""

MIN_KEY_LIFETIME = 1.0
"""Seconds for which keys are used at least, however many clients are expelled."""


class KeyRotation:
    """Replaces the keys when they are worn out, and soon after a client was expelled."""

    _log = Logger()

    def __init__(
        self,
        keys: Keys,
        window: SentWindow,
        clock: IReactorTime,
        *,
        announce: Callable[[], None],
    ) -> None:
        """
        @param window: cleared of the transfers that old keys sealed.
        @param announce: sends the new keys to the clients.
        """
        self._keys = keys
        self._window = window
        self._clock = clock
        self._announce = announce
        self._replacing: IDelayedCall | None = None
        self._needed_at = 0.0

    def expelled(self) -> None:
        """Replace the keys as soon as their minimum lifetime allows: a client was expelled."""
        if self._replacing is None:
            rest = max(0.0, self._keys.since + MIN_KEY_LIFETIME - self._clock.seconds())
            self._replacing = self._clock.callLater(rest, self._replace, "a client was expelled")

    def prepare(self) -> "Deferred[None]":
        """Replace the keys if they are worn out; fires once clients have those now in use."""
        why = self._keys.due()
        if why is not None:
            self._replace(why)
        early = self._needed_at - self._clock.seconds()
        return deferLater(self._clock, early, lambda: None) if early > 0 else succeed(None)

    def is_current(self, transfer: SentTransfer) -> bool:
        """Whether a transfer was sealed with the keys now in use."""
        return transfer.descriptor.epoch == self._keys.epoch.number

    def stop(self) -> None:
        """Do not replace the keys any more."""
        if self._replacing is not None:
            self._replacing.cancel()

    def _replace(self, why: str) -> None:
        """
        Begin a new epoch. The transfers held are dropped, as clients soon forget the old keys: a
        client that misses segments of one of them requests the range again.
        """
        if self._replacing is not None and self._replacing.active():
            self._replacing.cancel()
        self._replacing = None
        self._keys.replace()
        self._window.clear()
        self._log.info("new keys: {why}", why=why)
        self._needed_at = self._clock.seconds() + KEY_DELIVERY_DELAY
        self._announce()
