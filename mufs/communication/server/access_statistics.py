"""What clients ask for of each image: which ones are hot."""

from collections import OrderedDict
from collections.abc import Iterator
from math import exp

from attrs import define
from twisted.internet.interfaces import IReactorTime

MEMORY = 60.0
"""Seconds over which the rate at which an image is asked for is averaged."""

MOST_IMAGES = 1000
"""Images that are remembered: those asked for last."""


@define(eq=False)
class ImageAccess:
    """
    What is asked for at one path.

    @ivar opens: handles of clients that stand for it now.
    @ivar requests: READs for it, and C{bytes_requested} what they asked for.
    """

    path: bytes
    opens: int = 0
    requests: int = 0
    bytes_requested: int = 0
    _recent: float = 0.0
    _at: float = 0.0

    def asked(self, length: int, now: float) -> None:
        """So many bytes were asked for."""
        self.requests += 1
        self.bytes_requested += length
        self._recent = self._left(now) + length
        self._at = now

    def rate(self, now: float) -> float:
        """Bytes a second that were asked for lately: what is longer ago counts for less."""
        return self._left(now) / MEMORY

    def _left(self, now: float) -> float:
        # A clock may be set back.
        return self._recent * exp(min(0.0, self._at - now) / MEMORY)


class AccessStatistics:
    """The images that were asked for last, by their paths."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._images: OrderedDict[bytes, ImageAccess] = OrderedDict()

    def opened(self, path: bytes) -> ImageAccess:
        """A client has got a handle; its owner counts C{opens} down when it is gone."""
        image = self._images.get(path) or ImageAccess(path)
        image.opens += 1
        self._keep(image)
        return image

    def asked(self, image: ImageAccess, length: int) -> None:
        """A READ for so many bytes came."""
        image.asked(length, self._clock.seconds())
        self._keep(image)

    def __iter__(self) -> Iterator[tuple[ImageAccess, float]]:
        """The images, and the bytes a second that are asked for of each."""
        now = self._clock.seconds()
        return ((image, image.rate(now)) for image in self._images.values())

    def _keep(self, image: ImageAccess) -> None:
        self._images[image.path] = image
        self._images.move_to_end(image.path)
        if len(self._images) > MOST_IMAGES:
            self._images.popitem(last=False)
