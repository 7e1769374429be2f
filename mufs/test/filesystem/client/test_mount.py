"""FUSE's operations, without a mount."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client import mount
from mufs.filesystem.client.attributes import ATTRIBUTE_LIFETIME
from mufs.filesystem.client.images import PageCache
from mufs.filesystem.client.libfuse import ENCODING
from mufs.test.support.doubles import make_attributes, make_libfuse
from mufs.wire.metadata import Attributes, Caller, Statistics


class NFSTests(SynchronousTestCase):
    """Exports of the mount by NFS."""

    def test_server(self) -> None:
        """A thread of the kernel's NFS server is refused; a process of that name is not."""
        for parent, refused in ((b"2", True), (b"1", False)):
            status = {b"Name:": [b"nfsd"], b"PPid:": [parent]}
            self.assertIs(mount.is_nfs_server(status), refused)
        self.assertFalse(mount.is_nfs_server({}))


class StandInBridge:
    """
    Answers at once, and remembers what it is asked.

    @ivar error: what each operation raises, if anything.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.error: BaseException | None = None
        self.pages = PageCache.KEEP
        self.names: list[tuple[bytes, Attributes]] = []

    def _note(self, *call: object) -> None:
        self.asked.append(call)
        if self.error is not None:
            raise self.error

    def getattr(self, path: bytes, handle: int | None, caller: Any) -> Attributes:
        """See L{Bridge.getattr}."""
        self._note("getattr", path, handle)
        return make_attributes(5)

    def readdir(self, path: bytes, caller: Caller) -> list[tuple[bytes, Attributes]]:
        """See L{Bridge.readdir}."""
        self._note("readdir", path, caller)
        return self.names

    def readlink(self, path: bytes, caller: Caller) -> bytes:
        """See L{Bridge.readlink}."""
        self._note("readlink", path, caller)
        return b"to/\xfe"

    def statfs(self) -> Statistics:
        """See L{Bridge.statfs}."""
        self._note("statfs")
        return Statistics(4096, 512, 1, 2, 3, 4, 5, 6, 255)

    def open(self, path: bytes, caller: Caller) -> tuple[int, PageCache]:
        """See L{Bridge.open}."""
        self._note("open", path, caller)
        return 8, self.pages

    def read(self, handle: int, offset: int, target: memoryview) -> int:
        """See L{Bridge.read}."""
        self._note("read", handle, offset, len(target))
        content = b"content"[offset:][: len(target)]
        target[: len(content)] = content
        return len(content)

    def release(self, handle: int) -> None:
        """See L{Bridge.release}."""
        self._note("release", handle)

    def call_in_reactor(self, function: Any, *args: object) -> None:
        """See L{Bridge.call_in_reactor}."""
        self._note("call_in_reactor", function, *args)


class OperationsTestCase(SynchronousTestCase):
    """Has the operations, and somebody who calls them."""

    def setUp(self) -> None:
        """Have this process call them."""
        bridge: Any = StandInBridge()
        self.bridge: StandInBridge = bridge
        self.pid: Any = os.getpid()
        self.operations = mount.Operations(bridge, lambda: (1000, 100, self.pid), self.note_mounted)
        self.caller = Caller(1000, 100, os.getgroups()[:256])

    def note_mounted(self) -> None:
        """The kernel has the mount."""

    def info(self, flags: int = os.O_RDONLY, handle: int = 0) -> Any:
        """What libfuse passes for an open file."""
        return SimpleNamespace(flags=flags, fh=handle, keep_cache=False, direct_io=False)

    def assert_error(self, number: int, operation: str, *arguments: Any) -> None:
        """An operation fails with this error."""
        error = self.assertRaises(OSError, getattr(self.operations, operation), *arguments)
        self.assertEqual(error.errno, number)


class OperationsTests(OperationsTestCase):
    """What the kernel asks, and what the bridge is asked then."""

    def test_names(self) -> None:
        """Names are any bytes, in both directions."""
        text = b"/\xff/\xc3\xa9".decode(ENCODING)
        self.bridge.names = [(b"a", make_attributes()), (b"\xff\xc3\xa9 \n", make_attributes())]
        self.assertEqual(self.operations.readdir(text, 1, 0), self.bridge.names)
        target = self.operations.readlink(text)
        self.assertEqual(target.encode(ENCODING), b"to/\xfe")
        path = b"\xff/\xc3\xa9"
        expected = [("readdir", path, self.caller), ("readlink", path, self.caller)]
        self.assertEqual(self.bridge.asked, expected)

    def test_root(self) -> None:
        """The root of the mount is the empty path."""
        self.operations.getattr("/")
        self.assertEqual(self.bridge.asked, [("getattr", b"", None)])

    def test_listing(self) -> None:
        """A directory is listed anew from its beginning, and goes on as it was then."""
        handle, other = self.operations.opendir("/"), self.operations.opendir("/")
        self.assertNotEqual(handle, other)
        self.bridge.names = first = [(b"a", make_attributes())]
        self.assertEqual(self.operations.readdir("/", handle, 0), first)
        self.bridge.names = second = [(b"b", make_attributes())]
        self.assertEqual(self.operations.readdir("/", handle, 1), first)
        self.assertEqual(self.operations.readdir("/", other, 1), second)
        self.assertEqual(self.operations.readdir("/", handle, 0), second)
        self.assertEqual(len(self.bridge.asked), 3)
        self.operations.releasedir("/", handle)
        self.operations.releasedir("/", 99)
        self.operations.readdir("/", handle, 1)
        self.assertEqual(len(self.bridge.asked), 4)

    def test_old_listing(self) -> None:
        """The attributes of a listing are current until a file may have been replaced since."""
        now = 5.0
        self.patch(mount, "monotonic", lambda: now)
        self.operations.readdir("/", 1, 0)
        self.assertTrue(self.operations.is_current(1))
        now += ATTRIBUTE_LIFETIME
        self.operations.readdir("/", 1, 1)
        self.assertFalse(self.operations.is_current(1))
        self.operations.readdir("/", 1, 0)
        self.assertTrue(self.operations.is_current(1))

    def test_attributes(self) -> None:
        """A file is looked up by its path, an open one also by its handle, even if that is 0."""
        self.assertEqual(self.operations.getattr("/a"), make_attributes(5))
        self.operations.getattr("/a", self.info(handle=3))
        self.operations.getattr("/a", self.info(handle=0))
        self.assertEqual([handle for *_, handle in self.bridge.asked], [None, 3, 0])

    def test_access(self) -> None:
        """A file that exists may be read, and not be written to."""
        self.assertEqual(self.operations.access("/a", os.R_OK | os.X_OK), 0)
        self.assert_error(errno.EROFS, "access", "/a", os.R_OK | os.W_OK)
        self.bridge.error = FileNotFoundError(errno.ENOENT, "none")
        for mode in (os.R_OK, os.W_OK):
            self.assert_error(errno.ENOENT, "access", "/a", mode)

    def test_open(self) -> None:
        """An image is opened as the caller; the kernel learns what to do with its pages."""
        for pages, keep, bypass in (
            (PageCache.KEEP, True, False),
            (PageCache.RENEW, False, False),
            (PageCache.BYPASS, False, True),
        ):
            self.bridge.pages = pages
            info = self.info(os.O_RDONLY | os.O_NOFOLLOW)
            self.assertEqual(self.operations.open("/a", info), 0)
            self.assertEqual((info.fh, info.keep_cache, info.direct_io), (8, keep, bypass))
        self.assertEqual(self.bridge.asked, [("open", b"a", self.caller)] * 3)

    def test_read_only(self) -> None:
        """An open for writing is refused before the server is asked."""
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            self.assert_error(errno.EROFS, "open", "/a", self.info(flags))
        self.assertEqual(self.bridge.asked, [])

    def test_release(self) -> None:
        """A handle is released."""
        self.assertEqual(self.operations.release("/a", self.info(handle=8)), 0)
        self.assertEqual(self.bridge.asked, [("release", 8)])

    def test_statistics(self) -> None:
        """Figures of the file system are under the names of statvfs(3)."""
        found = self.operations.statfs("/")
        expected = os.statvfs_result((4096, 512, 1, 2, 3, 4, 5, 6, 0, 255))
        self.assertEqual(found, {name: getattr(expected, name) for name in found})

    def test_extended_attributes(self) -> None:
        """There are none, and nobody is asked for that."""
        self.assertEqual(self.operations.listxattr("/a"), [])
        self.assertEqual(self.bridge.asked, [])

    def test_mounted(self) -> None:
        """When the kernel has accepted the mount, the callback runs in the reactor's thread."""
        self.operations.init("/")
        self.assertEqual(self.bridge.asked, [("call_in_reactor", self.note_mounted)])

    def test_no_others(self) -> None:
        """There is no operation that writes, and none that gets extended attributes."""
        for name in ("write", "create", "unlink", "chmod", "rename", "getxattr"):
            self.assertFalse(hasattr(self.operations, name), name)


class CallerTests(OperationsTestCase):
    """Who calls an operation."""

    def caller_of(self) -> Any:
        """Who is said to open an image."""
        self.operations.open("/a", self.info())
        return self.bridge.asked[-1][-1]

    def test_groups(self) -> None:
        """The supplementary groups are those of the process."""
        self.assertEqual(self.caller_of(), self.caller)

    def test_many_groups(self) -> None:
        """Of a process with very many groups the first 256 are sent."""
        process = self.mktemp()
        os.mkdir(process)
        groups = " ".join(str(number) for number in range(300))
        with open(f"{process}/status", "w") as status:
            status.write(f"Name:\tcp\nGroups:\t{groups} \nNStgid:\t1\n")
        self.pid = f"self/cwd/{process}"
        self.assertEqual(self.caller_of(), Caller(1000, 100, list(range(256))))

    def test_unknown(self) -> None:
        """A process that has ended, or is in another namespace, has no known groups."""
        for self.pid in (0, 1 << 30):
            self.assertEqual(self.caller_of(), Caller(1000, 100, []))


class MountTests(OperationsTestCase):
    """What libfuse is given."""

    def test_serve(self) -> None:
        """The mount is read-only, the kernel checks modes, and any name gets through."""
        given: list[Any] = []
        libfuse = make_libfuse(mount=lambda *args, **options: given.append((args, options)))
        mount.serve(
            libfuse,
            self.operations,
            os.fsdecode(b"/mnt/\xff"),
            source="tls:h:1,x=y,z",
            allow_other=True,
            noexec=False,
        )
        (((operations, where), options),) = given
        self.assertIs(operations, self.operations)
        self.assertEqual(where.encode(options["encoding"]), b"/mnt/\xff")
        self.assertTrue(options["ro"] and options["default_permissions"] and options["foreground"])
        self.assertEqual(options["fsname"], "tls:h:1_x=y_z")
        self.assertEqual((options["allow_other"], options["noexec"]), (True, False))
