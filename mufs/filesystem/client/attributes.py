"""File attributes that were learnt a moment ago, and the last ones of each path."""

from attrs import define
from twisted.internet.interfaces import IReactorTime

from mufs.wire.metadata import Attributes

ATTRIBUTE_LIFETIME = 1.0
"""Seconds for which attributes are taken for current, as in NFS and FUSE."""

MAX_LISTING_LIFETIME = 10.0
"""Seconds for which those of a listing are, at most."""

LOOK_SECONDS = 0.0002
"""
Seconds that it takes to look at a file of a directory. Those of a listing are current for as long
as looking at all files takes, and for twice as long as the listing took to get, so that who looks
at each file of a large directory need not ask for it once more.
"""

MAX_PATHS = 20_000
"""Paths whose attributes are kept besides: those that were learnt last, and the root."""

MAX_LISTED_NAMES = 120_000
"""Names in all listings that are kept, about 60 MB."""


WALKED_SHARE = 16
"""Who looks up one in so many names of a directory while they are current walks through it."""


@define
class _Listing:
    """
    The names in a directory.

    @ivar expires: until when they are current, in seconds.
    @ivar asked: when the server was asked.
    @ivar lookups: how many were looked up while they were current.
    """

    expires: float
    asked: float
    names: dict[bytes, Attributes]
    lookups: int = 0


class AttributeCache:
    """
    The attributes that a listing or a lookup brought, so that the next lookup needs no request; it
    forgets first what was learnt first.

    Any thread may call L{get} and L{last}, one thread the others.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._known: dict[bytes, tuple[float, float, Attributes]] = {}
        self._listings: dict[bytes, _Listing] = {}
        self._listed_names = 0

    def get(self, path: bytes) -> Attributes | None:
        """The attributes of the file at C{path}, if they are current."""
        directory, _, name = path.rpartition(b"/")
        listing = self._listings.get(directory)
        known = self._newest(path, listing, name)
        if known is None or self._clock.seconds() > known[0]:
            return None
        if listing is not None:
            listing.lookups += 1
        return known[2]

    def last(self, path: bytes) -> Attributes | None:
        """The attributes last learnt of C{path}, however old."""
        directory, _, name = path.rpartition(b"/")
        known = self._newest(path, self._listings.get(directory), name)
        return None if known is None else known[2]

    def listing(self, directory: bytes) -> dict[bytes, Attributes] | None:
        """The names in a directory, as it was last listed."""
        known = self._listings.get(directory)
        return None if known is None else known.names

    def take_walk(self, directory: bytes) -> bool:
        """
        Whether somebody walked through a directory, whose listing is no longer current: then
        listing it again takes less than asking for each name. Returns true once for a listing.
        """
        listing = self._listings.get(directory)
        if listing is None or self._clock.seconds() <= listing.expires:
            return False
        walked = listing.lookups * WALKED_SHARE >= len(listing.names) > 0
        listing.lookups = 0
        return walked

    def remove(self, path: bytes) -> None:
        """Forget a path: there is nothing any more."""
        self._known.pop(path, None)
        self._drop_listing(path)
        directory, _, name = path.rpartition(b"/")
        listing = self._listings.get(directory)
        if listing is not None and listing.names.pop(name, None) is not None:
            self._listed_names -= 1

    def put(self, path: bytes, attributes: Attributes, asked: float) -> None:
        """
        Remember attributes that the server answered.

        @param asked: when it was asked, in seconds; the answer to a later request is kept.
        """
        known = self._known.pop(path, None)
        if known is not None and known[1] > asked:
            self._known[path] = known
            return
        if len(self._known) >= MAX_PATHS:
            del self._known[next(each for each in self._known if each)]
        self._known[path] = self._clock.seconds() + ATTRIBUTE_LIFETIME, asked, attributes

    def put_listing(self, directory: bytes, names: dict[bytes, Attributes], asked: float) -> None:
        """
        Remember the names in a directory.

        @param asked: when the server was asked, in seconds.
        """
        now = self._clock.seconds()
        lifetime = max(ATTRIBUTE_LIFETIME, 2 * (now - asked), LOOK_SECONDS * len(names))
        self._drop_listing(directory)
        expires = now + min(lifetime, MAX_LISTING_LIFETIME)
        self._listings[directory] = _Listing(expires, asked, names)
        self._listed_names += len(names)
        while self._listed_names > MAX_LISTED_NAMES:
            self._drop_listing(next(iter(self._listings)))

    def _drop_listing(self, directory: bytes) -> None:
        listing = self._listings.pop(directory, None)
        if listing is not None:
            self._listed_names -= len(listing.names)

    def _newest(
        self, path: bytes, listing: _Listing | None, name: bytes
    ) -> tuple[float, float, Attributes] | None:
        """
        What was learnt last of a path: until when it is current, when the server was asked.

        @param listing: of the directory that it is in, where it has this name.
        """
        known = self._known.get(path)
        if listing is not None and (known is None or known[1] <= listing.asked):
            listed = listing.names.get(name)
            if listed is not None:
                return listing.expires, listing.asked, listed
        return known
