"""
Which libfuse is used: 3 through mfusepy, or else 2 through fusepy. Only this module imports them.
"""

import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from ctypes.util import find_library
from functools import partial
from typing import Any

from attrs import frozen
from twisted.logger import Logger

from mufs.filesystem.client import thread_states
from mufs.wire.metadata import Attributes

NAMES = {3: "fuse3", 2: "fuse"}
"""The names of the libraries, by major version, in the order of preference."""

PROGRAMS = {3: "fusermount3", 2: "fusermount"}
"""The programs with which they mount for users other than root."""

PACKAGES = {3: "libfuse3-3 or libfuse3-4, and fuse3", 2: "libfuse2"}
"""The packages of Debian that have them."""

BINDINGS = {3: "mfusepy", 2: "fusepy"}
"""The packages of Python that bind them."""

ENCODING = "latin-1"
"""Carries the bytes of any name through fusepy and mfusepy, which want text."""

MAX_BACKGROUND = 256
"""
Requests for read-ahead that the kernel has under way. With as many waiting for a server that is
away, a further one waits in the kernel, even for what is cached.
"""

MAX_THREADS = 10_000
"""Threads of libfuse 3, for each request that waits needs one. Libfuse 2 has no limit."""

MAX_IDLE_THREADS = 10
"""Idle threads that libfuse 3 keeps, as libfuse 2 does; with more, each is used less often."""

MAX_READAHEAD = 16 << 20
"""Bytes: more than the read-ahead that the kernel is set to, see L{mountpoint.raise_read_ahead}."""

BLKSIZE = 128 * 1024
"""Bytes that programs should read at once."""

AUTO_INVAL_DATA = 1 << 12
"""
The kernel asks for the attributes before each read, and drops its pages when they have changed:
L{mufs.filesystem.client.images.OpenImages} sees to that with less.
"""

SPLICE_READ = 1 << 9
"""Requests come through a pipe, for programs that pass written data on: one more system call."""

FILL_DIR_PLUS = 1 << 1
"""A listing brings all attributes, not only types and numbers of inodes."""

SECOND = 10**9
"""Nanoseconds."""

_log = Logger()

_memory_at = ctypes.pythonapi.PyMemoryView_FromMemory  # checking types would take twice as long
_memory_at.restype = ctypes.py_object
_WRITABLE = ctypes.c_int(0x200)
"""PyBUF_WRITE of Python's C interface."""


class NoLibfuse(Exception):
    """There is no libfuse that can be used; the text says what is missing."""


class Mount:
    """
    Calls L{mufs.filesystem.client.mount.Operations} for libfuse, as a base of the classes FUSE of
    both libraries.

    @ivar status: makes an empty struct stat.
    """

    operations: Any
    status: Callable[[], Any]

    def _wrapper(self, function: Callable[..., int | None], *args: Any) -> int:
        """
        Called for each operation; returns 0, a number of bytes, or an errno below 0.

        Whatever is not an C{OSError} with an errno becomes EIO, and is logged.
        """
        thread_states.keep()
        try:
            return function(*args) or 0
        except OSError as error:
            if error.errno:
                return -error.errno
            _log.failure("{operation} failed", operation=function.__name__)
        except BaseException:
            _log.failure("{operation} failed", operation=function.__name__)
        return -errno.EIO

    def fgetattr(self, path: bytes, status: Any, info: Any) -> None:
        """The attributes of a file, which is open if C{info} is not null."""
        attributes = self.operations.getattr(path.decode(ENCODING), info.contents if info else None)
        _fill(status.contents, attributes)

    def list_directory(
        self, path: bytes, offset: int, info: Any, fill: Callable[[bytes, Any, int], int]
    ) -> None:
        """
        Some names of a directory, as many as there is room for.

        @param offset: how many were listed already.
        @param fill: takes a name, a struct stat or C{None}, and how many were listed with it;
            returns 1 when there is no more room.
        """
        names = self.operations.readdir(path.decode(ENCODING), info.contents.fh, offset)
        status = self.status()
        dots = b".", b".."
        for number in range(offset, len(dots) + len(names)):
            if number < len(dots):
                full = fill(dots[number], None, number + 1)
            else:
                name, attributes = names[number - len(dots)]
                _fill(status, attributes)
                full = fill(name, status, number + 1)
            if full:
                break

    def read(self, path: bytes, buffer: Any, size: int, offset: int, info: Any) -> int:
        """Have an image's bytes copied from the cache straight into libfuse's buffer."""
        target = _memory_at(buffer, ctypes.c_ssize_t(size), _WRITABLE)
        length: int = self.operations.read(info.contents.fh, offset, target)
        return length


def _fill(status: Any, attributes: Attributes) -> None:
    """Fill a struct stat."""
    status.st_mode = attributes.mode
    status.st_ino = attributes.ino
    status.st_nlink = attributes.nlink
    status.st_uid = attributes.uid
    status.st_gid = attributes.gid
    status.st_rdev = attributes.rdev
    status.st_size = attributes.size
    status.st_blocks = attributes.blocks
    status.st_blksize = BLKSIZE
    time = status.st_atimespec
    time.tv_sec, time.tv_nsec = divmod(attributes.atime, SECOND)
    time = status.st_mtimespec
    time.tv_sec, time.tv_nsec = divmod(attributes.mtime, SECOND)
    time = status.st_ctimespec
    time.tv_sec, time.tv_nsec = divmod(attributes.ctime, SECOND)


@frozen
class Libfuse:
    """
    A libfuse that was loaded.

    @ivar major: 2 or 3.
    @ivar version: such as 3.14.
    @ivar context: returns user, group and thread of the operation that this thread is called for.
    """

    major: int
    version: str
    context: Callable[[], tuple[int, int, int]]
    _mount: Callable[..., object]

    def asking_thread(self) -> int:
        """
        The ID of the thread that called the operation running in this thread; 0 if that is in a
        PID namespace that this process does not see.
        """
        return self.context()[2]

    def serve(self, operations: object, directory: str, **options: str | float | bool) -> None:
        """
        Mount, and answer the kernel until the mount ends; blocks.

        @param options: for libfuse, as in mount.fuse3(8).
        @raise RuntimeError: when it cannot be mounted; libfuse prints why on standard error.
        """
        self._mount(
            operations,
            os.fsencode(directory).decode(ENCODING),
            raw_fi=True,
            encoding=ENCODING,
            foreground=True,
            use_ino=True,
            **options,
        )


def load(major: int | None = None) -> Libfuse:
    """
    Load a libfuse, once in a process.

    @param major: 2 or 3; C{None} for the best one.
    @raise NoLibfuse: when it is not there.
    """
    lacking = []
    for each in NAMES if major is None else [major]:
        try:
            lack = _lack(each)
            if not lack:
                return _load_3() if each == 3 else _load_2()
        except OSError as error:
            lack = f"libfuse {each} cannot be loaded: {error}"
        except ImportError as error:
            lack = f"libfuse {each} needs {BINDINGS[each]}, a package of Python: {error}"
        lacking.append(lack)
    raise NoLibfuse("; ".join(lacking))


def find(major: int) -> str | None:
    """
    The file of a libfuse, if it is there: what the environment says, as both bindings read it, or
    what the system finds.

    @raise OSError: when the file that the environment names cannot be loaded.
    """
    path = os.environ.get("FUSE_LIBRARY_PATH")
    if path is None:
        return find_library(NAMES[major])
    return path if str(ctypes.CDLL(path).fuse_version()).startswith(str(major)) else None


def _lack(major: int) -> str:
    """What a libfuse needs and this host lacks; empty if nothing."""
    packages = PACKAGES[major]
    if find(major) is None:
        return f"libfuse {major} is missing (Debian: {packages})"
    if os.geteuid() != 0 and shutil.which(PROGRAMS[major]) is None:
        return f"{PROGRAMS[major]} is missing, with which users mount (Debian: {packages})"
    return ""


def _load_3() -> Libfuse:
    os.environ["FUSE_LIBRARY_NAME"] = NAMES[3]  # mfusepy would look for libfuse 2 first
    import mfusepy

    class Mount3(Mount, mfusepy.FUSE):  # type: ignore[misc] # mfusepy has no types
        status = mfusepy.c_stat

        def init_fuse_3(self, connection: Any, config: Any) -> None:
            wanted = connection.contents
            wanted.max_background = MAX_BACKGROUND
            wanted.max_readahead = MAX_READAHEAD
            wanted.want &= ~(AUTO_INVAL_DATA | SPLICE_READ)
            super().init_fuse_3(connection, config)

        def readdir_fuse_3(
            self, path: bytes, buffer: Any, filler: Any, offset: int, info: Any, flags: int
        ) -> None:
            def fill(name: bytes, status: Any, number: int) -> Any:
                plus = status and self.operations.is_current(info.contents.fh)
                return filler(buffer, name, status, number, FILL_DIR_PLUS if plus else 0)

            self.list_directory(path, offset, info, fill)

        def lseek(self, path: bytes, offset: int, whence: int, info: Any) -> int:
            found: int = self.operations.lseek(offset, whence, info.contents)
            return found

    def mount(*args: object, **options: object) -> None:
        options["max_idle_threads"] = MAX_IDLE_THREADS
        if mfusepy.fuse_version_minor >= 12:  # there was no limit before
            options["max_threads"] = MAX_THREADS
        Mount3(*args, **options)

    version = f"{mfusepy.fuse_version_major}.{mfusepy.fuse_version_minor}"
    return Libfuse(3, version, mfusepy.fuse_get_context, mount)


def _load_2() -> Libfuse:
    import fuse

    class Mount2(Mount, fuse.FUSE):  # type: ignore[misc] # fusepy has no types
        status = fuse.c_stat

        def readdir(self, path: bytes, buffer: Any, filler: Any, offset: int, info: Any) -> None:
            self.list_directory(path, offset, info, partial(filler, buffer))

    def mount(operations: object, *args: object, **options: object) -> None:
        Mount2(_Called(operations), *args, max_background=MAX_BACKGROUND, **options)

    major, minor = divmod(fuse._libfuse.fuse_version(), 10)  # its minor versions end with 9
    return Libfuse(2, f"{major}.{minor}", fuse.fuse_get_context, mount)


class _Called:
    """Operations as fusepy calls them: by their names."""

    def __init__(self, operations: object) -> None:
        self._operations = operations

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operations, name)

    def __call__(self, name: str, *args: Any) -> Any:
        return getattr(self._operations, name)(*args)
