"""The mount (paper, section 5.2): FUSE's operations, and the mount's options for the kernel."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import count
from time import monotonic
from typing import Any

from twisted.logger import Logger

from mufs.filesystem.client.attributes import ATTRIBUTE_LIFETIME
from mufs.filesystem.client.bridge import Bridge
from mufs.filesystem.client.images import PageCache
from mufs.filesystem.client.libfuse import ENCODING, Libfuse
from mufs.wire.metadata import Attributes, Caller

_log = Logger()


def _path(path: str) -> bytes:
    return path.encode(ENCODING)[1:]


def is_nfs_server(status: dict[bytes, list[bytes]]) -> bool:
    """
    Whether a process is a thread of the kernel's NFS server, whose handles of this mount would
    mean other files after a restart of the client.

    @param status: the words of each line of its /proc/PID/status, by the first.
    """
    return status.get(b"Name:") == [b"nfsd"] and status.get(b"PPid:") == [b"2"]


@cache
def _tell_of_nfs() -> None:
    _log.warn("refusing the kernel's NFS server: a mount of mUFS cannot be exported")


class Operations:
    """
    A read-only tree. The mount is read-only, so the kernel itself answers EROFS to writes. After
    the first getxattr, which has no method here, it answers ENOTSUP to all of them itself.
    """

    use_ns = True  # both bindings warn of floating-point times otherwise

    def __init__(
        self,
        bridge: Bridge,
        context: Callable[[], tuple[int, int, int]],
        on_mounted: Callable[[], None],
    ) -> None:
        """
        @param context: see L{Libfuse.context}.
        @param on_mounted: called in the reactor's thread once the kernel has the mount.
        """
        self._bridge = bridge
        self._context = context
        self._on_mounted = on_mounted
        self._directory_handles = count(1)
        self._listed: dict[int, list[tuple[bytes, Attributes]]] = {}
        self._listed_at: dict[int, float] = {}

    def init(self, path: str) -> None:
        """The kernel has accepted the mount."""
        self._bridge.call_in_reactor(self._on_mounted)

    def getattr(self, path: str, info: Any = None) -> Attributes:
        """Attributes of the file at a path, or of an open one."""
        handle = info.fh if info else None
        return self._bridge.getattr(_path(path), handle, self._caller)

    def opendir(self, path: str) -> int:
        """Return a handle under which a directory can be listed."""
        return next(self._directory_handles)

    def readdir(self, path: str, handle: int, offset: int) -> list[tuple[bytes, Attributes]]:
        """
        All names in a directory, without C{.} and C{..}: as they are now if it is read from its
        beginning, else as they were then.
        """
        names = self._listed.get(handle)
        if names is None or offset == 0:
            names = self._listed[handle] = self._bridge.readdir(_path(path), self._caller())
            self._listed_at[handle] = monotonic()
        return names

    def is_current(self, handle: int) -> bool:
        """
        Whether the attributes that L{readdir} returned are current. The kernel takes what a listing
        brings for newer than what it has: an old size would end a file that is mapped.
        """
        return monotonic() - self._listed_at[handle] < ATTRIBUTE_LIFETIME

    def releasedir(self, path: str, handle: int) -> int:
        """The last user of a directory has closed it."""
        self._listed_at.pop(handle, None)
        self._listed.pop(handle, None)
        return 0

    def listxattr(self, path: str) -> list[str]:
        """There are no extended attributes: programs that copy them take that without a word."""
        return []

    def readlink(self, path: str) -> str:
        """Where a symbolic link points."""
        return self._bridge.readlink(_path(path), self._caller()).decode(ENCODING)

    def statfs(self, path: str) -> dict[str, int]:
        """Figures of the server's file system."""
        found = self._bridge.statfs()
        return {
            "f_bsize": found.bsize,
            "f_frsize": found.frsize,
            "f_blocks": found.blocks,
            "f_bfree": found.bfree,
            "f_bavail": found.bavail,
            "f_files": found.files,
            "f_ffree": found.ffree,
            "f_favail": found.favail,
            "f_namemax": found.namemax,
        }

    def access(self, path: str, mode: int) -> int:
        """Check that a file exists; the kernel checks its modes itself."""
        self._bridge.getattr(_path(path), None, self._caller)
        if mode & os.W_OK:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return 0

    def open(self, path: str, info: Any) -> int:
        """Open an image for reading."""
        if info.flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        info.fh, pages = self._bridge.open(_path(path), self._caller())
        info.keep_cache = pages is PageCache.KEEP
        info.direct_io = pages is PageCache.BYPASS
        return 0

    def read(self, handle: int, offset: int, target: memoryview) -> int:
        """Fill C{target} with bytes of an open image; returns their number."""
        return self._bridge.read(handle, offset, target)

    def lseek(self, offset: int, whence: int, info: Any) -> int:
        """Where data (C{SEEK_DATA}) or a hole is, at an offset of an open image or after it."""
        return self._bridge.find(info.fh, offset, data=whence == os.SEEK_DATA)

    def release(self, path: str, info: Any) -> int:
        """The last user of a handle has closed it."""
        self._bridge.release(info.fh)
        return 0

    def _caller(self) -> Caller:
        """The process that called the operation running in this thread."""
        uid, gid, pid = self._context()
        status: dict[bytes, list[bytes]] = {}
        # FUSE does not pass these. None are known of a process that has ended, or is in another
        # namespace.
        with suppress(OSError), open(f"/proc/{pid}/status", "rb") as lines:
            status = {words[0]: words[1:] for words in map(bytes.split, lines) if words}
        if is_nfs_server(status):
            _tell_of_nfs()
            raise OSError(errno.EACCES, "a mount of mUFS cannot be exported by NFS")
        groups = [int(word) for word in status.get(b"Groups:", ())]
        return Caller(uid, gid, groups[:256])


def serve(
    libfuse: Libfuse,
    operations: Operations,
    directory: str,
    *,
    source: str,
    allow_other: bool,
    noexec: bool,
) -> None:
    """
    Mount, and answer the kernel until the mount ends; blocks.

    @param source: what mount(8) and df(1) show as the device.
    @raise RuntimeError: when it cannot be mounted; libfuse prints why on standard error.
    """
    libfuse.serve(
        operations,
        directory,
        ro=True,
        fsname=source.replace(",", "_"),
        subtype="mufs",
        default_permissions=True,
        attr_timeout=0,
        entry_timeout=1,
        allow_other=allow_other,
        noexec=noexec,
    )
