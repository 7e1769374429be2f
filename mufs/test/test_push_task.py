"""Pushes that are asked for at the control socket."""

from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from mufs.push_task import push_task
from mufs.test.support.memory import MemoryLibrary


@define
class Client:
    """A connection; without a name it has not said HELLO."""

    name: str


@define
class Clients:
    """The clients of a server, and what they were asked to pull."""

    channels: list[Client] = field(factory=list)
    pushed: list[dict[str, Any]] = field(factory=list)

    @property
    def pushes(self) -> "Clients":
        """The pushes of a factory."""
        return self

    def in_thread(self, function: Any, *args: Any) -> Deferred[Any]:
        """Call at once."""
        return maybeDeferred(function, *args)

    def push(self, path: bytes, size: int, **how: Any) -> Deferred[Any]:
        """Take a push."""
        self.pushed.append({"path": path, "size": size, **how})
        return succeed({"ended": True})


class PushTaskTests(SynchronousTestCase):
    """What is pushed to whom."""

    def setUp(self) -> None:
        """Have two clients and a third that has not said HELLO."""
        self.library = MemoryLibrary()
        self.library.put(b"disk.img", bytes(1000))
        self.library.put(b"srv/images/disk.img", bytes(2000))
        self.first, self.second = Client("host1"), Client("host2")
        self.clients: Any = Clients([self.first, self.second, Client("")])

    def push(self, directory: str = "/srv/images", **asked: object) -> Deferred[Any]:
        """Ask for a push."""
        return push_task(self.clients, self.library, directory)(asked, self.fail)

    def test_path(self) -> None:
        """An image is named by its path beneath the exported directory; all clients get it."""
        self.assertEqual(self.successResultOf(self.push(path="/disk.img")), {"ended": True})
        (pushed,) = self.clients.pushed
        self.assertEqual((pushed["path"], pushed["size"]), (b"disk.img", 1000))
        self.assertEqual((pushed["clients"], pushed["names"]), ([self.first, self.second], None))

    def test_file(self) -> None:
        """A file in the exported directory is meant before a path beneath it."""
        name = "/srv/images/disk.img"
        self.successResultOf(self.push(path=name, file=name))
        self.assertEqual(self.clients.pushed[0]["path"], b"disk.img")

    def test_file_elsewhere(self) -> None:
        """A file outside the exported directory is none, also where no directory is exported."""
        name = "/srv/images/disk.img"
        for directory in ("/srv/image", ""):
            self.successResultOf(self.push(directory, path=name, file=name))
        self.assertEqual([each["size"] for each in self.clients.pushed], [2000, 2000])

    def test_links(self) -> None:
        """A symbolic link is followed by file and by path, and never out of the directory."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        (directory / "disk.img").touch()
        (directory / "latest").symlink_to("disk.img")
        (directory / "out").symlink_to("/etc/hostname")
        for asked in ({"path": "latest"}, {"path": "x", "file": str(directory / "latest")}):
            self.successResultOf(self.push(str(directory), **asked))
            self.assertEqual(self.clients.pushed.pop()["path"], b"disk.img")
        self.failureResultOf(self.push(str(directory), path="out"), OSError)

    def test_names(self) -> None:
        """A push may be for some clients."""
        self.successResultOf(self.push(path="disk.img", to=["host2", "host3"]))
        self.assertEqual(self.clients.pushed[0]["names"], {"host2", "host3"})

    def test_wrong_names(self) -> None:
        """Names that are no list are an error."""
        self.failureResultOf(self.push(path="disk.img", to="host2"), ValueError)

    def test_missing(self) -> None:
        """The error of an image that is not there is that of the first place looked at."""
        failure = self.failureResultOf(self.push(path="/none", file="/srv/images/none"), OSError)
        self.assertIsInstance(failure.value, FileNotFoundError)
        self.assertEqual(self.clients.pushed, [])
