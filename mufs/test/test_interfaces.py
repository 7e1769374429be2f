"""The real classes, and their doubles, provide the interfaces that they name."""

from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mufs.cache.client.blocks import BlockCache
from mufs.cache.server.sent import IReader
from mufs.communication.client.channel import IChannelUser
from mufs.communication.server.output import ISegmentOutput, MulticastOutput
from mufs.filesystem.client.remote import RemoteFileSystem
from mufs.filesystem.server.library import ExportedDirectory
from mufs.interfaces import IImage, IImageLibrary
from mufs.test.support.channels import Server
from mufs.test.support.doubles import (
    ImageInMemory,
    RecordingOutput,
    RecordingReader,
    make_interface,
)


class InterfaceTests(SynchronousTestCase):
    """What provides what."""

    def assert_provides(self, interface: Any, provider: object) -> None:
        """The object has all that the interface asks for, with the same parameters."""
        self.assertTrue(verifyObject(interface, provider))

    def test_library(self) -> None:
        """A directory is an image library, and its files are images."""
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "image").touch()
        library = ExportedDirectory(str(directory))
        self.assert_provides(IImageLibrary, library)
        self.assert_provides(IImage, library.open(b"image"))
        self.assert_provides(IImage, ImageInMemory(b""))

    def test_reader(self) -> None:
        """A channel of the server can be told by the queue, and paused by its transport."""
        self.assert_provides(IReader, Server().connect()[0])
        self.assert_provides(IPushProducer, Server().connect()[0])
        self.assert_provides(IReader, RecordingReader())

    def test_channel_user(self) -> None:
        """The files of a client can be told by its channel."""
        remote = RemoteFileSystem(
            Clock(),
            BlockCache(1),
            1,
            on_welcome=lambda channel, welcome: None,
            on_moved=lambda welcome: None,
            on_refused=lambda reason: None,
        )
        self.assert_provides(IChannelUser, remote)

    def test_output(self) -> None:
        """The end of the group at the server takes segments."""
        reactor: Any = None
        here = make_interface()
        output = MulticastOutput(reactor, "239.5.5.0", 7041, interface=here, segment=1400)
        self.assert_provides(ISegmentOutput, output)
        self.assert_provides(ISegmentOutput, RecordingOutput())
