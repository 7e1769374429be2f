"""File attributes that were learnt a moment ago."""

from twisted.internet.interfaces import IReactorTime

from mufs.wire.metadata import Attributes

ATTRIBUTE_LIFETIME = 1.0
"""Seconds for which attributes are taken for current, as in NFS and FUSE."""

MAX_PATHS = 20_000
"""Paths whose attributes are kept, about 25 MB; more are rarely used within their lifetime."""


class AttributeCache:
    """
    The attributes that a listing or a lookup brought, so that the next lookup needs no request.

    L{get} may be called from any thread, L{put} from one.
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

    def put(self, path: bytes, attributes: Attributes, asked: float) -> None:
        """
        Remember attributes that the server answered.

        @param asked: when it was asked, in seconds; the answer to a later request is kept.
        """
        known = self._known.get(path)
        if known is not None and known[1] > asked:
            return
        if len(self._known) >= MAX_PATHS and known is None:
            root = self._known.get(b"")
            self._known.clear()
            if root is not None:
                self._known[b""] = root
        self._known[path] = self._clock.seconds() + ATTRIBUTE_LIFETIME, asked, attributes
