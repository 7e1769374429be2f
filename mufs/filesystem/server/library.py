"""The image library: an exported directory. Nothing outside of it can be read."""

import errno
import os
import stat
from hashlib import blake2b
from weakref import WeakValueDictionary, finalize

from zope.interface import implementer

from mufs.communication.server.descriptors import RESERVED_FDS_OF_IMAGES, exhausted
from mufs.interfaces import IImage, IImageLibrary
from mufs.wire.metadata import Attributes, Caller, Statistics
from mufs.wire.pages import ImageKey


def _attributes(found: os.stat_result, device: int) -> Attributes:
    """@param device: of the root; inode numbers on other devices are hashed to keep them unique."""
    return Attributes(
        mode=found.st_mode,
        ino=found.st_ino if found.st_dev == device else _number(found.st_dev, found.st_ino),
        nlink=found.st_nlink,
        uid=found.st_uid,
        gid=found.st_gid,
        rdev=found.st_rdev,
        size=found.st_size,
        blocks=found.st_blocks,
        atime=_time(found.st_atime_ns),
        mtime=_time(found.st_mtime_ns),
        ctime=_time(found.st_ctime_ns),
    )


def _time(nanoseconds: int) -> int:
    """A time cut to 64 bits; some file systems have times more than 292 years from 1970."""
    return min(max(nanoseconds, -(1 << 63)), (1 << 63) - 1)


def _number(*values: int) -> int:
    """A hash of 64 bits, the same in every run of a server."""
    text = ",".join(map(str, values)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


def _generation(found: os.stat_result) -> int:
    return _number(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


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


def _key(found: os.stat_result) -> ImageKey:
    """Image and generation of a file."""
    return _number(found.st_dev, found.st_ino), _generation(found)


@implementer(IImage)
class Image:
    """One generation of a file, defined by its device, inode, size, mtime and ctime."""

    def __init__(self, fd: int, found: os.stat_result, device: int) -> None:
        """
        @param fd: open for reading; closed when the image is garbage collected.
        @param device: of the library's root.
        """
        self._fd = fd
        self.image, self.generation = _key(found)
        self.attributes = _attributes(found, device)
        self._nowait = True
        finalize(self, os.close, fd)

    def read(self, offset: int, length: int) -> bytes:
        """See L{IImage.read}."""
        return self._checked(os.pread(self._fd, length, offset), offset, length)

    def read_at_once(self, offset: int, length: int) -> bytes | None:
        """See L{IImage.read_at_once}: the page cache is read, if the system supports that."""
        data = bytearray(max(0, min(length, self.attributes.size - offset)))
        try:
            if self._nowait and os.preadv(self._fd, [data], offset, os.RWF_NOWAIT) == len(data):
                return self._checked(bytes(data), offset, length)
        except OSError as error:
            self._nowait = error.errno != errno.EOPNOTSUPP
        return None

    def _checked(self, data: bytes, offset: int, length: int) -> bytes:
        # Checked after reading, so that every change before the read shows.
        if _generation(os.fstat(self._fd)) != self.generation:
            raise OSError(errno.ESTALE, "the image was changed on the server")
        if len(data) < min(length, self.attributes.size - offset):
            raise OSError(errno.EIO, "the image is shorter than it says")
        return data


@implementer(IImageLibrary)
class ExportedDirectory:
    """
    A directory and everything below it. Paths are walked name by name from an open directory,
    never through a symbolic link, so no path leads out of it, even if files are moved meanwhile.
    """

    def __init__(self, root: str | bytes) -> None:
        """@raise OSError: when C{root} is not a directory that can be read."""
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._device = os.fstat(self._root).st_dev
        self._images: WeakValueDictionary[ImageKey, Image] = WeakValueDictionary()
        finalize(self, os.close, self._root)

    def getattr(self, path: bytes, caller: Caller | None = None) -> Attributes:
        """See L{IImageLibrary.getattr}."""
        fd = self._walk(path, caller)
        try:
            return _attributes(os.fstat(fd), self._device)
        finally:
            os.close(fd)

    def readdir(self, path: bytes, caller: Caller | None = None) -> list[tuple[bytes, Attributes]]:
        """See L{IImageLibrary.readdir}. Reading attributes requires search permission as well."""
        entries = []
        fd = self._reopen(self._walk(path, caller), os.O_DIRECTORY)
        try:
            _check(caller, os.fstat(fd), os.R_OK | os.X_OK)
            with os.scandir(fd) as found:
                for entry in found:
                    try:
                        found_there = entry.stat(follow_symlinks=False)
                    except OSError:  # removed since, or the mount point of a dead file system
                        continue
                    attributes = _attributes(found_there, self._device)
                    entries.append((os.fsencode(entry.name), attributes))
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
            image = self._images.get(_key(found))
            if image is None and exhausted(RESERVED_FDS_OF_IMAGES):
                raise OSError(errno.EMFILE, "too many open images")
        except OSError:
            os.close(fd)
            raise
        if image is not None:
            os.close(fd)
            return image
        fd = self._reopen(fd, 0)
        found = os.fstat(fd)
        return self._images.setdefault(_key(found), Image(fd, found, self._device))

    def statfs(self) -> Statistics:
        """See L{IImageLibrary.statfs}."""
        found = os.statvfs(self._root)
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
        fd = os.dup(self._root)
        for left, name in zip(range(len(names) - 1, -1, -1), names, strict=True):
            try:
                if caller is not None:
                    _check(caller, os.fstat(fd), os.X_OK)
                below = os.open(name, flags | (os.O_DIRECTORY if left else 0), dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _reopen(self, fd: int, flags: int) -> int:
        """Open the file that C{fd} refers to for reading, and close C{fd}."""
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | flags)
        finally:
            os.close(fd)
