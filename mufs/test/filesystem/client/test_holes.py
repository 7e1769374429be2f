"""Holes as a host learns of them, with a channel that the test answers."""

from __future__ import annotations

import errno

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.channel import ChannelLost
from mufs.filesystem.client.holes import Holes
from mufs.filesystem.client.images import OpenImage
from mufs.filesystem.client.reading.sequences import SequenceDetector
from mufs.test.filesystem.client.test_remote import Channel
from mufs.test.support.doubles import make_attributes
from mufs.wire.channel import Type
from mufs.wire.metadata import UNKNOWN, DataMap, MapRequest
from mufs.wire.pages import BLOCK, PAGE

SIZE = 10 * BLOCK + 77
KEY = 1, 1


class HolesTestCase(SynchronousTestCase):
    """Has an open image."""

    def setUp(self) -> None:
        """A connection, and an image that was opened on it."""
        self.channel: Channel | None = Channel()
        self.cache = BlockCache(2 * BLOCK)
        self.holes = Holes(self.cache, lambda: self.channel)  # type: ignore[arg-type,return-value]
        self.image = self.make_image()

    def make_image(self, handle: int = 5) -> OpenImage:
        """An open image."""
        return OpenImage(b"image", KEY, make_attributes(SIZE), SequenceDetector(SIZE), handle)

    def answer(self, value: object) -> MapRequest:
        """Answer the oldest request, which is one for a map."""
        assert self.channel is not None
        kind, asked = self.channel.answer(value)
        self.assertEqual(kind, Type.MAP)
        assert isinstance(asked, MapRequest)
        return asked

    def missing(self, offset: int, length: int = PAGE) -> bool:
        """Whether the cache lacks some of a range."""
        return not self.cache.read(KEY, offset, memoryview(bytearray(length)))

    def known(self, offset: int, *, data: bool) -> int | str | None:
        """What is known, or the name of the errno."""
        try:
            return self.holes.known(self.image, offset, data=data)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def assert_fails(self, found: Deferred[int], number: int) -> None:
        """A call has failed with that errno."""
        self.assertEqual(self.failureResultOf(found, OSError).value.errno, number)


class FirstPartTests(HolesTestCase):
    """The map comes with OPEN."""

    def test_zero(self) -> None:
        """Pages in a hole are zero without a request, those with a byte of data are not."""
        bounds = 100, PAGE + 1, 3 * PAGE, BLOCK
        self.holes.opened(self.image, DataMap(0, SIZE, bounds))
        pages = {page: self.missing(page * PAGE) for page in range(BLOCK // PAGE + 2)}
        self.assertEqual([page for page in pages if not pages[page]], [2, 32, 33])
        self.assertEqual(self.cache.held, 0)

    def test_end(self) -> None:
        """The last page is zero if all of it that the image has is."""
        self.holes.opened(self.image, DataMap(0, SIZE, (0, 9 * BLOCK)))
        self.assertFalse(self.missing(10 * BLOCK, 77))
        other = OpenImage(b"other", (2, 1), make_attributes(SIZE), SequenceDetector(SIZE), 6)
        self.holes.opened(other, DataMap(0, SIZE, (SIZE - 1, SIZE)))
        self.assertFalse(self.cache.read((2, 1), 10 * BLOCK, memoryview(bytearray(77))))

    def test_known(self) -> None:
        """What is known is found at once, exactly; beyond the end of data there is none."""
        self.holes.opened(self.image, DataMap(0, SIZE, (100, 5001)))
        self.assertEqual(self.known(0, data=True), 100)
        self.assertEqual(self.known(100, data=True), 100)
        self.assertEqual(self.known(100, data=False), 5001)
        self.assertEqual(self.known(5001, data=True), "ENXIO")
        self.assertEqual(self.known(SIZE - 1, data=False), SIZE - 1)
        for offset in (SIZE, SIZE + 1, -1, -(1 << 63)):
            self.assertEqual(self.known(offset, data=True), "ENXIO")
            self.assertEqual(self.known(offset, data=False), "ENXIO")

    def test_end_is_hole(self) -> None:
        """An image that ends with data has a hole at its end."""
        self.holes.opened(self.image, DataMap(0, SIZE, (0, SIZE)))
        self.assertEqual(self.known(5, data=False), SIZE)

    def test_stale(self) -> None:
        """Of a stale image nothing is told."""
        self.holes.opened(self.image, DataMap(0, SIZE, (0, SIZE)))
        self.image.stale = True
        self.assertEqual(self.known(5, data=False), "ESTALE")

    def test_complete(self) -> None:
        """Nothing is asked for where the map is complete."""
        self.holes.opened(self.image, DataMap(0, SIZE, (0, SIZE)))
        assert self.channel is not None
        self.assertEqual(self.channel.requests, [])


class FurtherPartsTests(HolesTestCase):
    """The map comes in parts."""

    def test_background(self) -> None:
        """Further parts are asked for one at a time, and make the cache know of holes."""
        self.holes.opened(self.image, DataMap(0, BLOCK, (0, 10)))
        assert self.channel is not None
        self.assertEqual(len(self.channel.requests), 1)
        self.assertEqual(self.answer(DataMap(BLOCK, 3 * BLOCK, ())), MapRequest(5, BLOCK))
        self.assertFalse(self.missing(BLOCK, 2 * BLOCK))
        self.assertEqual(len(self.channel.requests), 1)
        self.assertEqual(self.answer(DataMap(3 * BLOCK, SIZE, ())), MapRequest(5, 3 * BLOCK))
        self.assertEqual(self.channel.requests, [])
        self.assertEqual(self.known(10, data=True), "ENXIO")

    def test_several_images(self) -> None:
        """Of several images one is asked for at a time."""
        other = self.make_image(handle=6)
        self.holes.opened(self.image, UNKNOWN)
        self.holes.opened(other, UNKNOWN)
        assert self.channel is not None
        self.assertEqual(len(self.channel.requests), 1)
        self.assertEqual(self.answer(DataMap(0, SIZE, ())).handle, 5)
        self.assertEqual(self.answer(DataMap(0, SIZE, ())).handle, 6)

    def test_shared(self) -> None:
        """Two who have one image open share its map."""
        other = self.make_image(handle=6)
        other.data_map = self.image.data_map
        self.holes.opened(self.image, UNKNOWN)
        self.holes.opened(other, UNKNOWN)
        self.answer(DataMap(0, SIZE, ()))
        assert self.channel is not None
        self.assertEqual(self.channel.requests, [])

    def test_failures(self) -> None:
        """A failure ends asking; after ESTALE the image is stale."""
        for value in (OSError(errno.EIO, "no"), ChannelLost(), DataMap(0, 0, ()),
                      DataMap(5, 9, ()), DataMap(0, SIZE + 1, ())):  # fmt: skip
            self.holes.opened(self.image, UNKNOWN)
            self.answer(value)
            assert self.channel is not None
            self.assertEqual(self.channel.requests, [])
            self.assertFalse(self.image.stale)
            self.assertEqual(self.image.data_map.end, 0)
        self.holes.opened(self.image, UNKNOWN)
        self.answer(OSError(errno.ESTALE, "changed"))
        self.assertTrue(self.image.stale)

    def test_reconnected(self) -> None:
        """The next connection goes on with what is lacking."""
        channel = self.channel
        self.holes.opened(self.image, DataMap(0, BLOCK, ()))
        self.channel, self.image.server_handle = None, None
        self.answer_on(channel, ChannelLost())
        self.channel, self.image.server_handle = Channel(), 9
        self.holes.reopened(self.image)
        self.assertEqual(self.answer(DataMap(BLOCK, SIZE, ())), MapRequest(9, BLOCK))

    def answer_on(self, channel: Channel | None, value: object) -> None:
        """Answer a request on a connection that is no longer used."""
        assert channel is not None
        channel.answer(value)


class FindTests(HolesTestCase):
    """What is not known is asked for."""

    def setUp(self) -> None:
        """An image whose map is known to its middle."""
        super().setUp()
        self.holes.opened(self.image, DataMap(0, 2 * BLOCK, (BLOCK, 2 * BLOCK)))
        self.answer(OSError(errno.EIO, "not now"))

    def test_beyond(self) -> None:
        """From where it is not known on the server is asked, as often as that takes."""
        found = self.holes.find(self.image, BLOCK + 5, data=False)
        part = DataMap(2 * BLOCK, 4 * BLOCK, (2 * BLOCK, 4 * BLOCK))
        self.assertEqual(self.answer(part), MapRequest(5, 2 * BLOCK))
        last = DataMap(4 * BLOCK, SIZE, (4 * BLOCK, 4 * BLOCK + 100))
        self.assertEqual(self.answer(last), MapRequest(5, 4 * BLOCK))
        self.assertEqual(self.successResultOf(found), 4 * BLOCK + 100)
        self.assertFalse(self.missing(5 * BLOCK))

    def test_far_beyond(self) -> None:
        """A part that does not follow what is known serves those who look there."""
        found = self.holes.find(self.image, 5 * BLOCK, data=True)
        part = DataMap(5 * BLOCK, 8 * BLOCK, (6 * BLOCK, 7 * BLOCK))
        self.assertEqual(self.answer(part), MapRequest(5, 5 * BLOCK))
        self.assertEqual(self.successResultOf(found), 6 * BLOCK)
        self.assertEqual(self.known(6 * BLOCK, data=False), 7 * BLOCK)
        self.assertIsNone(self.known(4 * BLOCK, data=True))

    def test_none(self) -> None:
        """ENXIO, if there is no data any more."""
        found = self.holes.find(self.image, 5 * BLOCK, data=True)
        self.answer(DataMap(5 * BLOCK, SIZE, ()))
        self.assert_fails(found, errno.ENXIO)

    def test_failures(self) -> None:
        """What the server cannot answer, or answers wrong, fails."""
        for value, number in (
            (OSError(errno.EACCES, "no"), errno.EACCES),
            (DataMap(5 * BLOCK, 5 * BLOCK, ()), errno.EIO),
            (DataMap(4 * BLOCK, SIZE, ()), errno.EIO),
            (DataMap(5 * BLOCK, SIZE + 1, ()), errno.EIO),
            (OSError(errno.ESTALE, "changed"), errno.ESTALE),
        ):
            found = self.holes.find(self.image, 5 * BLOCK, data=True)
            self.answer(value)
            self.assert_fails(found, number)
        self.assertTrue(self.image.stale)

    def test_away(self) -> None:
        """Without a connection it waits for the next one; it may be cancelled meanwhile."""
        channel = self.channel
        finding = [self.holes.find(self.image, 5 * BLOCK, data=True)]
        self.channel, self.image.server_handle = None, None
        assert channel is not None
        channel.answer(ChannelLost())
        finding += [self.holes.find(self.image, 5 * BLOCK, data=True) for _ in range(2)]
        finding[1].cancel()
        self.failureResultOf(finding[1], CancelledError)
        self.channel, self.image.server_handle = Channel(), 9
        self.holes.reopened(self.image)
        part = DataMap(5 * BLOCK, SIZE, (5 * BLOCK, SIZE))
        self.assertEqual({self.answer(part).handle for _ in range(2)}, {9})
        self.assertEqual([self.successResultOf(each) for each in finding[::2]], [5 * BLOCK] * 2)

    def test_cancelled(self) -> None:
        """A request may be given up."""
        found = self.holes.find(self.image, 5 * BLOCK, data=True)
        found.cancel()
        self.failureResultOf(found, CancelledError)
        assert self.channel is not None
        self.assertEqual(self.channel.requests, [])

    def test_replaced(self) -> None:
        """Who waits for a connection, and finds another image there, is told so."""
        self.channel, self.image.server_handle = None, None
        found = self.holes.find(self.image, 5 * BLOCK, data=True)
        self.image.stale = True
        self.holes.reopened(self.image)
        self.assert_fails(found, errno.ESTALE)
