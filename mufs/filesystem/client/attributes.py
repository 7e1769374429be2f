"""Attributes known from a moment ago."""

from twisted.internet.interfaces import IReactorTime

from mufs.wire.metadata import Attributes

ATTRIBUTE_LIFETIME = 1.0
"""Seconds that attributes are taken for right, as NFS and FUSE have it."""

MAX_PATHS = 20_000
"""Paths known at a time, 25 MB of them; more are not looked at within their lifetime."""


class AttributeCache:
    """
    What a listing or a look told of paths, so that the look that follows asks nobody.

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
        """The attributes last learnt, however old."""
        known = self._known.get(path)
        return None if known is None else known[2]

    def put(self, path: bytes, attributes: Attributes, asked: float) -> None:
        """
        Remember what was learnt just now.

        @param asked: when the server was asked; what was asked for later is not forgotten for it.
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
