"""The images that a client has open."""

from __future__ import annotations

import errno

from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure as Error
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.access_statistics import AccessStatistics
from mufs.communication.server.handles import Handles
from mufs.communication.server.limits import MAX_HANDLES, Limits
from mufs.test.support.channels import (
    SIZE,
    ServerChannelTestCase,
    TwoClientsTestCase,
)
from mufs.test.support.doubles import ImageInMemory
from mufs.wire.channel import (
    Priority,
    Read,
    Type,
    pack,
    pack_tagged,
    parse_tagged,
)
from mufs.wire.metadata import (
    At,
    Close,
    Failure,
    decode,
    encode,
)
from mufs.wire.pages import BLOCK


class HandlesTests(SynchronousTestCase):
    """The handles of one client."""

    def setUp(self) -> None:
        """A client that may have three handles."""
        clock = Clock()
        self.statistics = AccessStatistics(clock)
        self.limits = Limits(clock, max_handles=3)
        self.handles = Handles(self.limits, self.statistics)
        self.image = ImageInMemory(b"content", image=5, generation=6)

    def opens(self) -> dict[bytes, int]:
        """How many handles the statistics know of, by path."""
        return {access.path: access.opens for access, _ in self.statistics}

    def test_add(self) -> None:
        """Each handle is another one, and leads to its image and the statistics of its path."""
        first = self.handles.add(b"a", self.image)
        second = self.handles.add(b"b", self.image)
        self.assertNotEqual(first, second)
        for handle, path in ((first, b"a"), (second, b"b")):
            opened = self.handles.get(handle)
            assert opened is not None
            self.assertIs(opened.image, self.image)
            self.assertEqual(opened.access.path, path)
        self.assertEqual(len(self.handles), 2)
        self.assertEqual(self.opens(), {b"a": 1, b"b": 1})

    def test_close(self) -> None:
        """A handle that was closed leads nowhere, is not given out again, and counts once."""
        handle = self.handles.add(b"a", self.image)
        self.handles.close(handle)
        self.handles.close(handle)
        self.assertIs(self.handles.get(handle), None)
        self.assertEqual((len(self.handles), self.opens()), (0, {b"a": 0}))
        self.assertNotEqual(self.handles.add(b"a", self.image), handle)

    def test_limit(self) -> None:
        """The number of handles is limited; an OPEN that is refused leaves no trace."""
        made = [self.handles.add(b"a", self.image) for _ in range(3)]
        other = ImageInMemory(b"", image=7)
        error = self.assertRaises(OSError, self.handles.add, b"b", other)
        self.assertEqual(error.errno, errno.EMFILE)
        self.assertEqual(self.opens(), {b"a": 3})
        self.assertNotIn((other.image, other.generation), self.handles.generations)
        self.handles.close(made[1])
        self.handles.add(b"b", other)

    def test_generations(self) -> None:
        """The keys that a client was given it keeps when it closes the handle."""
        self.handles.close(self.handles.add(b"a", self.image))
        self.assertEqual(self.handles.generations, {(5, 6)})

    def test_last_access(self) -> None:
        """What was opened or read last is known, and reads count for their path."""
        self.assertIs(self.handles.last_access, None)
        first = self.handles.get(self.handles.add(b"a", self.image))
        second = self.handles.get(self.handles.add(b"b", self.image))
        assert first is not None and second is not None
        self.assertIs(self.handles.last_access, second.access)
        self.handles.note_read(first.access, 4096)
        self.assertIs(self.handles.last_access, first.access)
        self.assertEqual((first.access.requests, first.access.bytes_requested), (1, 4096))
        self.assertEqual(second.access.requests, 0)

    def test_close_all(self) -> None:
        """The handles of a client that has gone do not count any more."""
        for path in (b"a", b"b", b"b"):
            self.handles.add(path, self.image)
        self.handles.close_all()
        self.assertEqual((len(self.handles), self.opens()), (0, {b"a": 0, b"b": 0}))


class ChannelTests(ServerChannelTestCase):
    """OPEN and CLOSE through a channel."""

    def test_opened(self) -> None:
        """OPEN is answered with a handle, the image's attributes, and its key."""
        first, second = self.open(), self.open()
        self.assertNotEqual(first.handle, second.handle)
        self.assertEqual(first.key, second.key)
        self.assertEqual(first.attributes.size, SIZE)

    def test_closed(self) -> None:
        """A handle that was closed is not accepted any more."""
        handle = self.open().handle
        self.send(pack(Type.CLOSE, encode(Close(handle))))
        read = Read(3, handle, 0, 4096, Priority.BLOCKED)
        self.assert_error(self.send(read.encode()), 3, "EBADF")

    def test_close_of_none(self) -> None:
        """Closing what is not open changes nothing."""
        self.assertEqual(self.send(pack(Type.CLOSE, encode(Close(4711)))), [])
        self.assertFalse(self.wire.ended)

    def test_close_malformed(self) -> None:
        """A malformed CLOSE ends the connection."""
        self.assert_closes(pack(Type.CLOSE, encode(Close(1)) + b"x"))

    def test_handle_of_another(self) -> None:
        """A handle is valid only on its own connection."""
        handle = self.open().handle
        self.channel, self.wire = self.server.connect()
        read = Read(3, handle, 0, 4096, Priority.BLOCKED)
        self.assert_error(self.send(read.encode()), 3, "EBADF")

    def test_too_many(self) -> None:
        """The number of a client's handles is limited."""
        packet = pack_tagged(Type.OPEN, 1, encode(At(b"disk.img")))
        for _ in range(MAX_HANDLES):
            self.send(packet)
        self.assert_error(self.send(packet), 1, "EMFILE")

    def test_too_many_at_once(self) -> None:
        """The same for a client that sends all OPENs before the first is answered."""
        self.server.at_once = False
        packet = pack_tagged(Type.OPEN, 1, encode(At(b"disk.img")))
        self.channel.dataReceived(packet * (MAX_HANDLES + 100))
        while self.server.asked:
            self.server.answer()
        self.assertLessEqual(len(self.channel.handles), MAX_HANDLES)

    def test_given_back(self) -> None:
        """The handles of a client that goes are closed."""
        self.open()
        self.channel.connectionLost(Error(ConnectionLost()))
        self.assertEqual(len(self.channel.handles), 0)

    def test_statistics(self) -> None:
        """What a client opens, reads and closes counts for the image, also when it disconnects."""
        handles = [self.open().handle for _ in range(3)]
        ((image, _),) = self.server.factory.access_statistics
        self.assertEqual((image.path, image.opens), (b"disk.img", 3))
        self.say(Read(7, handles[0], 0, 2 * BLOCK, Priority.BLOCKED).encode())
        self.assertEqual((image.requests, image.bytes_requested), (1, 2 * BLOCK))
        self.assertIs(self.channel.handles.last_access, image)
        for _ in range(2):
            self.say(pack(Type.CLOSE, encode(Close(handles[0]))))
            self.assertEqual((image.opens, len(self.channel.handles)), (2, 2))
        self.channel.connectionLost(Error(ConnectionLost()))
        self.assertEqual(image.opens, 0)

    def test_refused(self) -> None:
        """READs that are refused, and OPENs that fail, do not count."""
        handle = self.open().handle
        self.say(Read(7, handle, 5, BLOCK, Priority.BLOCKED).encode())
        self.say(Read(7, handle + 1, 0, BLOCK, Priority.BLOCKED).encode())
        self.say(pack_tagged(Type.OPEN, 2, encode(At(b"none"))))
        self.assertEqual(
            [(i.path, i.requests) for i, _ in self.server.factory.access_statistics],
            [(b"disk.img", 0)],
        )


class LimitTests(TwoClientsTestCase):
    """How many handles there may be."""

    def test_few_files(self) -> None:
        """Where the server can open few files, one client cannot have them all."""
        self.server.factory.limits.max_handles = 3
        for _ in range(3):
            self.open(self.greedy, self.its_wire)
        self.greedy.dataReceived(pack_tagged(Type.OPEN, 1, encode(At(b"disk.img"))))
        ((kind, _, body),) = self.its_wire.packets()
        self.assertEqual(kind, Type.ERROR)
        self.assertEqual(decode(Failure, parse_tagged(body)[1]).errno, "EMFILE")
        self.open(self.honest, self.wire)
