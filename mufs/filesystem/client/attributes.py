"""File attributes that were learnt a moment ago, and the last ones of each path."""

from twisted.internet.interfaces import IReactorTime

from mufs.wire.metadata import Attributes

ATTRIBUTE_LIFETIME = 1.0
"""Seconds for which attributes are taken for current, as in NFS and FUSE."""

MAX_PATHS = 20_000
"""Paths whose attributes are kept, about 25 MB: those that were learnt last, and the root."""


class AttributeCache:
    """
    The attributes that a listing or a lookup brought, so that the next lookup needs no request.

    Any thread may call L{get} and L{last}, one thread the others.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._known: dict[bytes, tuple[float, float, Attributes]] = {}

    def get(self, path: bytes) -> Attributes | None:
        """The attributes of the file at C{path}, if learnt within C{ATTRIBUTE_LIFETIME}."""
        known = self._known.get(path)
        if known is None or self._clock.seconds() > known[0]:
            return None
        return known[2]

    def last(self, path: bytes) -> Attributes | None:
        """The attributes last learnt of C{path}, however old."""
        known = self._known.get(path)
        return None if known is None else known[2]

    def remove(self, path: bytes) -> None:
        """Forget a path."""
        self._known.pop(path, None)

    def put(self, path: bytes, attributes: Attributes, asked: float) -> None:
        """
        Remember attributes that the server answered.

        @param asked: when it was asked, in seconds; the answer to a later request is kept.
        """
        known = self._known.get(path)
        if known is not None and known[1] > asked:
            return
        self.remove(path)
        if len(self._known) >= MAX_PATHS:
            del self._known[next(each for each in self._known if each)]
        self._known[path] = self._clock.seconds() + ATTRIBUTE_LIFETIME, asked, attributes
