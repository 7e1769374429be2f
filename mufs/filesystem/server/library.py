"""The image library: an exported directory. Nothing outside of it can be read."""

import errno
import os
import stat
from time import monotonic
from weakref import WeakValueDictionary, finalize, ref

from twisted.logger import Logger
from zope.interface import implementer

from mufs.communication.server.descriptors import RESERVED_FDS_OF_IMAGES, exhausted
from mufs.filesystem.server import read_memory
from mufs.filesystem.server.contents import Content, Contents, first_generation, stamps_of
from mufs.filesystem.server.holes import await_tick, find_data
from mufs.filesystem.server.identity import FileSystems, file_handle, number
from mufs.interfaces import IImage, IImageLibrary
from mufs.wire.metadata import Attributes, Caller, DataMap, Statistics
from mufs.wire.pages import ImageKey

_MIN_TIME, _MAX_TIME = -(1 << 63), (1 << 63) - 1

ROOT_INTERVAL = 1.0
"""Seconds between looks at what is at the path of the exported directory."""


def _attributes(found: os.stat_result, device: int, generation: int) -> Attributes:
    """@param device: of the root; inode numbers on other devices are hashed to keep them unique."""
    return Attributes(
        mode=found.st_mode,
        ino=found.st_ino if found.st_dev == device else number(found.st_dev, found.st_ino),
        nlink=found.st_nlink,
        uid=found.st_uid,
        gid=found.st_gid,
        rdev=found.st_rdev,
        size=found.st_size,
        blocks=found.st_blocks,
        atime=_time(found.st_atime_ns),
        mtime=_time(found.st_mtime_ns),
        ctime=_time(found.st_ctime_ns),
        generation=generation,
    )


def _time(nanoseconds: int) -> int:
    """A time cut to 64 bits; some file systems have times more than 292 years from 1970."""
    if _MIN_TIME <= nanoseconds <= _MAX_TIME:
        return nanoseconds
    return min(max(nanoseconds, _MIN_TIME), _MAX_TIME)


def _check(caller: Caller | None, found: os.stat_result, wanted: int) -> None:
    """
    Check that the mode bits of a file grant access to a caller. Root has all access.

    @param wanted: C{os.R_OK}, C{os.X_OK}, or both.
    @raise OSError: EACCES.
    """
    if caller is None or caller.uid == 0:
        return
    if caller.uid == found.st_uid:
        bits = found.st_mode >> 6
    elif found.st_gid == caller.gid or found.st_gid in caller.groups:
        bits = found.st_mode >> 3
    else:
        bits = found.st_mode
    if bits & wanted != wanted:
        raise OSError(errno.EACCES, "permission denied")


@implementer(IImage)
class Image:
    """One content of a file, see L{mufs.filesystem.server.contents}."""

    def __init__(self, fd: int, content: Content, generation: int) -> None:
        """@param fd: open for reading; closed when the image is garbage collected."""
        self._fd = fd
        self.content = content
        self.image, self.generation = content.number, generation
        self.attributes: Attributes
        self._nowait = True
        finalize(self, os.close, fd)

    def fileno(self) -> int:
        """The file descriptor."""
        return self._fd

    def read(self, offset: int, length: int) -> memoryview:
        """See L{IImage.read}."""
        data = read_memory.take(length)
        got = os.preadv(self._fd, [data], offset)
        self._look()
        return self._checked(data[:got], offset, length)

    def read_at_once(self, offset: int, length: int) -> memoryview | None:
        """See L{IImage.read_at_once}: the page cache is read, if the system supports that."""
        size = max(0, min(length, self.attributes.size - offset))
        data = read_memory.take(size)
        try:
            if self._nowait and os.preadv(self._fd, [data], offset, os.RWF_NOWAIT) == len(data):
                current = self.content.is_current(os.fstat(self._fd))
                return self._checked(data, offset, length) if current else None
        except OSError as error:
            self._nowait = error.errno != errno.EOPNOTSUPP
        return None

    def find_data(self, offset: int) -> DataMap:
        """See L{IImage.find_data}."""
        # A client keeps what it learns here for as long as the content has this number.
        await_tick(self._fd)
        found = find_data(self._fd, offset, self.attributes.size)
        self._look()
        self._check_generation()
        return found

    def _look(self) -> None:
        """Have the content look at the file after it was read: so every change before shows."""
        if not self.content.is_current(os.fstat(self._fd)):
            self.content.settle(self._fd)

    def _check_generation(self) -> None:
        if self.content.generation != self.generation:
            raise OSError(errno.ESTALE, "the image was changed on the server")

    def _checked(self, data: memoryview, offset: int, length: int) -> memoryview:
        self._check_generation()
        if len(data) < min(length, self.attributes.size - offset):
            raise OSError(errno.EIO, "the image is shorter than it says")
        return data


@implementer(IImageLibrary)
class ExportedDirectory:
    """
    A directory and everything below it. Paths are walked name by name from an open directory,
    never through a symbolic link, so no path leads out of it, even if files are moved meanwhile.

    @ivar contents: what is known of the images opened last.
    """

    _log = Logger()

    def __init__(self, root: str | bytes, fsid: bytes = b"") -> None:
        """
        @param fsid: identifies the root's file system, in place of what it says itself.
        @raise OSError: when C{root} is not a directory that can be read.
        """
        self._path = root
        self._root = _Root(root)
        self._looked = monotonic()
        self._fsid = fsid
        self._file_systems = self._identified(self._root)
        self.contents = Contents()
        self._images: WeakValueDictionary[ImageKey, Image] = WeakValueDictionary()

    def getattr(self, path: bytes, caller: Caller | None = None) -> Attributes:
        """See L{IImageLibrary.getattr}."""
        fd = self._walk(path, caller)
        try:
            return self._described(fd, os.fstat(fd))
        finally:
            os.close(fd)

    def readdir(self, path: bytes, caller: Caller | None = None) -> list[tuple[bytes, Attributes]]:
        """See L{IImageLibrary.readdir}. Reading attributes requires search permission as well."""
        entries = []
        there = self._walk(path, caller)
        try:
            fd = _opened(there, os.O_DIRECTORY)
        finally:
            os.close(there)
        try:
            _check(caller, os.fstat(fd), os.R_OK | os.X_OK)
            with os.scandir(fd) as found:
                for entry in found:
                    name = os.fsencode(entry.name)
                    try:
                        found_there = entry.stat(follow_symlinks=False)
                        entries.append((name, self._described(fd, found_there, name)))
                    except OSError:  # removed since, or the mount point of a dead file system
                        continue
        finally:
            os.close(fd)
        return entries

    def readlink(self, path: bytes, caller: Caller | None = None) -> bytes:
        """See L{IImageLibrary.readlink}."""
        fd = self._walk(path, caller)
        try:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a symbolic link")
            return os.readlink(b"", dir_fd=fd)
        finally:
            os.close(fd)

    def open(self, path: bytes, caller: Caller | None = None) -> Image:
        """
        See L{IImageLibrary.open}.

        Execute permission implies read permission, as in NFS: the client's kernel must read a
        program to run it.

        @raise OSError: EISDIR for a directory, ELOOP for a symbolic link, EACCES for other special
            files, which are never opened; EMFILE when too many images are open.
        """
        fd = self._walk(path, caller)
        try:
            found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode):
                raise OSError(errno.EISDIR, "is a directory")
            if stat.S_ISLNK(found.st_mode):
                raise OSError(errno.ELOOP, "is a symbolic link")
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EACCES, "is no regular file")
            try:
                _check(caller, found, os.R_OK)
            except PermissionError:
                _check(caller, found, os.X_OK)
            file, watchable = self._identify(fd, found)
            content = self.contents.watch(fd, file, watchable=watchable)
            generation, found = content.settle(fd)
            image = self._images.get((file, generation))
            if image is None:
                if exhausted(RESERVED_FDS_OF_IMAGES):
                    raise OSError(errno.EMFILE, "too many open images")
                image = Image(_opened(fd), content, generation)
                image = self._images.setdefault((file, generation), image)
            # The content that it was opened with may no longer be the one that is watched.
            image.content = content
            content.image = ref(image)
            image.attributes = _attributes(found, self._root.device, generation)
            return image
        finally:
            os.close(fd)

    def statfs(self) -> Statistics:
        """See L{IImageLibrary.statfs}."""
        root = self._current_root()
        found = os.statvfs(root.fd)
        return Statistics(
            bsize=found.f_bsize,
            frsize=found.f_frsize,
            blocks=found.f_blocks,
            bfree=found.f_bfree,
            bavail=found.f_bavail,
            files=found.f_files,
            ffree=found.f_ffree,
            favail=found.f_favail,
            namemax=found.f_namemax,
        )

    def _walk(self, path: bytes, caller: Caller | None) -> int:
        """
        A descriptor that refers to the file at C{path} without opening it (O_PATH).

        @raise OSError: EACCES for a path with C{.}, C{..} or empty names, and for a directory
            that C{caller} may not search.
        """
        names = path.split(b"/") if path else []
        if any(name in (b"", b".", b"..") or b"\0" in name for name in names):
            raise OSError(errno.EACCES, "not a path beneath the root")
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        root = self._current_root()  # kept, so that its descriptor stays open until it is copied
        fd = os.dup(root.fd)
        for left, name in zip(range(len(names) - 1, -1, -1), names, strict=True):
            try:
                if caller is not None:
                    _check(caller, os.fstat(fd), os.X_OK)
                below = os.open(name, flags | (os.O_DIRECTORY if left else 0), dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _current_root(self) -> "_Root":
        """The root: what is at its path, looked at every C{ROOT_INTERVAL}."""
        now = monotonic()
        if now - self._looked >= ROOT_INTERVAL:
            self._looked = now
            try:
                root = _Root(self._path)
            except OSError as error:
                if not self._root.gone:
                    self._log.warn(
                        "{path} is gone ({reason}): still sharing what was there",
                        path=os.fsdecode(self._path), reason=error.strerror,
                    )  # fmt: skip
                self._root.gone = True
            else:
                if root.place != self._root.place:
                    self._log.info(
                        "another directory or file system is at {path} now: sharing that",
                        path=os.fsdecode(self._path),
                    )
                    self._file_systems = self._identified(root)
                    self._root = root
                self._root.gone = False
        return self._root

    def _identified(self, root: "_Root") -> FileSystems:
        """The file systems beneath a root, its own first: that has C{fsid}."""
        file_systems = FileSystems(self._fsid)
        file_systems.of(root.fd, root.device)
        return file_systems

    def _identify(self, fd: int, found: os.stat_result, name: bytes = b"") -> tuple[int, bool]:
        """
        The number of a file, and whether the changes of its content can be watched.

        @param fd: of the file, or of its directory if C{name} is given.
        """
        file_system = self._file_systems.of(fd, found.st_dev)
        handle = file_handle(fd, name)
        # Without handles, an inode number may come back with another file.
        image = number(file_system.identity, handle or b"%d" % found.st_ino)
        return image, file_system.is_local and bool(handle) and self.contents.can_watch

    def _described(self, fd: int, found: os.stat_result, name: bytes = b"") -> Attributes:
        """
        The attributes of a file.

        @param fd: of the file, or of its directory if C{name} is given.
        """
        generation = 0
        if stat.S_ISREG(found.st_mode):
            image, watchable = self._identify(fd, found, name)
            content = self.contents.get(image)
            if content is None:
                generation = first_generation(image, stamps_of(found), watchable=watchable)
            elif content.is_current(found):
                generation = content.generation
            elif not name:
                generation, found = content.settle(fd)
            else:
                file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                try:
                    return self._described(file, os.fstat(file))
                finally:
                    os.close(file)
        return _attributes(found, self._root.device, generation)


class _Root:
    """
    An open directory.

    @ivar place: its mount, its device and its inode.
    @ivar gone: whether its path led nowhere when it was looked at last.
    """

    def __init__(self, path: str | bytes) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finalize(self, os.close, self.fd)
        found = os.fstat(self.fd)
        with open(f"/proc/self/fdinfo/{self.fd}", "rb") as lines:
            mount = next(line for line in lines if line.startswith(b"mnt_id:"))
        self.device = found.st_dev
        self.place = mount, found.st_dev, found.st_ino
        self.gone = False


def _opened(fd: int, flags: int = 0) -> int:
    """The file that C{fd} refers to, opened for reading."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | flags)
