"""How much clients read of each image: which images are hot."""

from collections import OrderedDict
from collections.abc import Iterator
from math import exp

from attrs import define
from twisted.internet.interfaces import IReactorTime

AVERAGING_SECONDS = 60.0
"""Time constant, in seconds, of the average rate at which an image is asked for."""

MAX_TRACKED_IMAGES = 1000
"""Images that are remembered: those asked for last."""


@define(eq=False)
class ImageAccess:
    """
    What clients ask for at one path.

    @ivar size: bytes, when it was opened last.
    @ivar opens: handles that are open now.
    @ivar requests: READs so far, and C{bytes_requested} the bytes that they asked for.
    """

    path: bytes
    size: int = 0
    opens: int = 0
    requests: int = 0
    bytes_requested: int = 0
    _recent: float = 0.0
    _updated: float = 0.0

    def note_read(self, length: int, now: float) -> None:
        """A READ asked for this many bytes."""
        self.requests += 1
        self.bytes_requested += length
        self._recent = self._decayed(now) + length
        self._updated = now

    def rate(self, now: float) -> float:
        """Bytes asked for per second, averaged so that recent ones count for more."""
        return self._decayed(now) / AVERAGING_SECONDS

    def _decayed(self, now: float) -> float:
        # The clock may be set back.
        return self._recent * exp(min(0.0, self._updated - now) / AVERAGING_SECONDS)


class AccessStatistics:
    """The images that clients asked for last, by path."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._images: OrderedDict[bytes, ImageAccess] = OrderedDict()

    def opened(self, path: bytes) -> ImageAccess:
        """A client has opened an image; who closes it decrements C{opens}."""
        image = self._images.get(path) or ImageAccess(path)
        image.opens += 1
        self._keep(image)
        return image

    def note_read(self, image: ImageAccess, length: int) -> None:
        """A READ asked for this many bytes of an image."""
        image.note_read(length, self._clock.seconds())
        self._keep(image)

    def __iter__(self) -> Iterator[tuple[ImageAccess, float]]:
        """Each image, and the bytes per second that clients ask for of it."""
        now = self._clock.seconds()
        return ((image, image.rate(now)) for image in self._images.values())

    def _keep(self, image: ImageAccess) -> None:
        self._images[image.path] = image
        self._images.move_to_end(image.path)
        if len(self._images) > MAX_TRACKED_IMAGES:
            self._images.popitem(last=False)
