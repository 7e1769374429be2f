"""The mount (paper, section 5.2): FUSE's operations; the only module that imports fuse."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, wraps
from typing import Any, TypeVar

from twisted.logger import Logger

from mufs.filesystem.client.bridge import Bridge
from mufs.filesystem.client.images import PageCache
from mufs.wire.metadata import Attributes, Caller

try:
    from fuse import FUSE, _libfuse, fuse_file_info, fuse_get_context
except OSError as error:
    sys.exit(f"mufs-client: libfuse 2 is missing, on Debian the package libfuse2: {error}")

T = TypeVar("T")

ENCODING = "latin-1"
"""Carries the bytes of any name through fusepy, which wants text."""

MAX_BACKGROUND = 256
"""
Requests for read-ahead that the kernel has under way. With as many waiting for a server that is
away, a further one waits in the kernel, even for what is cached; each costs a thread of libfuse.
"""

_log = Logger()


def libfuse_version() -> str:
    """The version of libfuse in use, such as 2.9."""
    version = _libfuse.fuse_version()
    # Libfuse 2 counts its minor versions up to 9; 3.16 is 316.
    major, minor = divmod(version, 10 if version < 100 else 100)
    return f"{major}.{minor}"


def _operation(method: Callable[..., T]) -> Callable[..., T]:
    """
    Turn every exception but an C{OSError} with an errno into EIO, and log it.

    fusepy takes an error without an errno for success: the end of a file.
    """

    @wraps(method)
    def operate(*args: Any) -> T:
        try:
            return method(*args)
        except OSError as error:
            if error.errno:
                raise
            _log.failure("{operation} failed", operation=method.__name__)
        except BaseException:
            _log.failure("{operation} failed", operation=method.__name__)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    return operate


def _path(path: str) -> bytes:
    return path.encode(ENCODING)[1:]


def asking_thread() -> int:
    """
    The ID of the thread that called the operation running in this thread; 0 if that is in a PID
    namespace that this process does not see.
    """
    pid: int = fuse_get_context()[2]
    return pid


def _caller() -> Caller:
    """The process that called the operation running in this thread."""
    uid, gid, pid = fuse_get_context()
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


def _stat(attributes: Attributes) -> dict[str, int]:
    return {
        "st_mode": attributes.mode,
        "st_ino": attributes.ino,
        "st_nlink": attributes.nlink,
        "st_uid": attributes.uid,
        "st_gid": attributes.gid,
        "st_rdev": attributes.rdev,
        "st_size": attributes.size,
        "st_blocks": attributes.blocks,
        "st_blksize": 128 * 1024,
        "st_atime": attributes.atime,
        "st_mtime": attributes.mtime,
        "st_ctime": attributes.ctime,
    }


class Operations:
    """
    A read-only tree. The mount is read-only, so the kernel itself answers EROFS to writes. After
    the first getxattr, which has no method here, it answers ENOTSUP to all of them itself.
    """

    use_ns = True

    def __init__(self, bridge: Bridge, on_mounted: Callable[[], None]) -> None:
        """@param on_mounted: called in the reactor's thread once the kernel has the mount."""
        self._bridge = bridge
        self._on_mounted = on_mounted

    def __call__(self, name: str, *args: Any) -> Any:
        """Called by fusepy with the name of an operation."""
        return getattr(self, name)(*args)

    @_operation
    def init(self, path: str) -> None:
        """The kernel has accepted the mount."""
        self._bridge.call_in_reactor(self._on_mounted)

    @_operation
    def getattr(self, path: str, info: "fuse_file_info | None" = None) -> dict[str, int]:
        """Attributes of the file at a path, or of an open one."""
        handle = info.fh if info else None
        return _stat(self._bridge.getattr(_path(path), handle, _caller))

    @_operation
    def readdir(self, path: str, handle: int) -> Iterator[tuple[str, dict[str, int], int]]:
        """The names in a directory."""
        names: list[tuple[str, dict[str, int], int]] = [(".", {}, 0), ("..", {}, 0)]
        for name, attributes in self._bridge.readdir(_path(path), _caller()):
            entry = {"st_ino": attributes.ino, "st_mode": attributes.mode}
            names.append((name.decode(ENCODING), entry, 0))
        return iter(names)

    @_operation
    def listxattr(self, path: str) -> list[str]:
        """There are no extended attributes: programs that copy them take that without a word."""
        return []

    @_operation
    def readlink(self, path: str) -> str:
        """Where a symbolic link points."""
        return self._bridge.readlink(_path(path), _caller()).decode(ENCODING)

    @_operation
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

    @_operation
    def access(self, path: str, mode: int) -> int:
        """Check that a file exists; the kernel checks its modes itself."""
        self._bridge.getattr(_path(path), None, _caller)
        if mode & os.W_OK:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return 0

    @_operation
    def open(self, path: str, info: fuse_file_info) -> int:
        """Open an image for reading."""
        if info.flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        info.fh, pages = self._bridge.open(_path(path), _caller())
        info.keep_cache = pages is PageCache.KEEP
        info.direct_io = pages is PageCache.BYPASS
        return 0

    @_operation
    def read(self, target: memoryview, offset: int, info: fuse_file_info) -> int:
        """Fill C{target} with bytes of an open image; returns their number."""
        return self._bridge.read(info.fh, offset, target)

    @_operation
    def release(self, path: str, info: fuse_file_info) -> int:
        """The last user of a handle has closed it."""
        self._bridge.release(info.fh)
        return 0


_memory_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_at.argtypes = [ctypes.POINTER(ctypes.c_byte), ctypes.c_ssize_t, ctypes.c_int]
_memory_at.restype = ctypes.py_object
_WRITABLE = 0x200
"""PyBUF_WRITE of Python's C interface."""


class _Mount(FUSE):  # type: ignore[misc] # fusepy has no types
    """Has an image's bytes copied from the cache straight into libfuse's buffer."""

    def read(self, path: bytes, buffer: Any, size: int, offset: int, info: Any) -> int:
        target = _memory_at(buffer, size, _WRITABLE)
        length: int = self.operations.read(target, offset, info.contents)
        return length


def serve(
    operations: Operations, directory: str, *, source: str, allow_other: bool, noexec: bool
) -> None:
    """
    Mount, and answer the kernel until the mount ends; blocks.

    @param source: what mount(8) and df(1) show as the device.
    @raise RuntimeError: when it cannot be mounted; libfuse prints why on standard error.
    """
    _Mount(
        operations,
        os.fsencode(directory).decode(ENCODING),
        raw_fi=True,
        encoding=ENCODING,
        foreground=True,
        ro=True,
        fsname=source.replace(",", "_"),
        subtype="mufs",
        default_permissions=True,
        use_ino=True,
        attr_timeout=0,
        entry_timeout=1,
        max_background=MAX_BACKGROUND,
        allow_other=allow_other,
        noexec=noexec,
    )
