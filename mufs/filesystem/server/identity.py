"""
Which file an image is: numbers that stay the same while devices are renumbered and files renamed.

A file is known by its file system and by its file handle (name_to_handle_at(2)), which has a
number that no later file with the same inode gets. A file system is known by its UUID.
"""

import ctypes
import errno
import os
from fcntl import ioctl
from hashlib import blake2b
from struct import Struct
from threading import Lock

from attrs import frozen

_libc = ctypes.CDLL(None, use_errno=True)
_AT_EMPTY_PATH = 0x1000
_HANDLE = Struct("=Ii")
"""Number of bytes, and type; as many bytes follow."""
_MAX_HANDLE = 128
_HandleBuffer = ctypes.c_char * (_HANDLE.size + _MAX_HANDLE)
_MOUNT_ID = ctypes.byref(ctypes.c_int())
"""For a result that nobody reads."""

_STATFS = Struct("=7q2i")
"""Of struct statfs on 64-bit systems: type, sizes and counts, and the two halves of the id."""

_GETFSUUID = 0x80111500
"""FS_IOC_GETFSUUID of Linux 6.9, <linux/fs.h>."""

EXT4, BTRFS, XFS, TMPFS = 0xEF53, 0x9123683E, 0x58465342, 0x01021994
"""Types of file systems, <linux/magic.h>."""

LASTING_ID = frozenset({EXT4, BTRFS})
"""Types whose C{f_fsid} is made of their UUID; that of others is made of the device number."""

LOCAL = frozenset({EXT4, BTRFS, XFS, TMPFS})
"""Types whose files change only through this host's kernel, which reports that to inotify."""


@frozen
class FileSystem:
    """
    A mounted file system.

    @ivar identity: bytes that no other file system has.
    @ivar is_local: see L{LOCAL}.
    """

    identity: bytes
    is_local: bool


def number(*parts: bytes | int) -> int:
    """A hash of 64 bits, the same in every run of a server."""
    text = b",".join([part if isinstance(part, bytes) else b"%d" % part for part in parts])
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


def file_handle(fd: int, name: bytes = b"") -> bytes:
    """
    The handle of the file C{fd}, or of C{name} in the directory C{fd}.

    @return: empty where the file system has no handles.
    @raise OSError: when there is no such file.
    """
    buffer = _HandleBuffer()
    _HANDLE.pack_into(buffer, 0, _MAX_HANDLE, 0)
    if _libc.name_to_handle_at(fd, name, buffer, _MOUNT_ID, 0 if name else _AT_EMPTY_PATH):
        code = ctypes.get_errno()
        if code in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise OSError(code, os.strerror(code))
        return b""
    length, _ = _HANDLE.unpack_from(buffer)
    return buffer.raw[4 : _HANDLE.size + length]


class FileSystems:
    """
    The file systems under an exported directory.

    If two have the same UUID, as a file system and its copy have, the one that is seen later is
    known by its device number as well.
    """

    def __init__(self, root: bytes = b"") -> None:
        """@param root: the identity that the operator gave to that of the root, if any."""
        self._root = root
        self._known: dict[tuple[int, bytes], FileSystem] = {}
        self._lock = Lock()

    def of(self, fd: int, device: int) -> FileSystem:
        """
        The file system of a file.

        @param fd: may be of O_PATH.
        @param device: of C{fstat}.
        """
        buffer = ctypes.create_string_buffer(512)
        _libc.fstatfs(fd, buffer)
        *_, low, high = found = _STATFS.unpack_from(buffer)
        kind, statfs_id = found[0], b"%d,%d" % (low, high)
        # Its device number alone may be that of another one that was unmounted since.
        known = self._known.get((device, statfs_id))
        if known is not None:
            return known
        with self._lock:
            known = self._known.get((device, statfs_id))
            if known is None:
                identity = self._root if not self._known else b""
                lasting = statfs_id if kind in LASTING_ID and low | high else b""
                # A UUID can be asked for only of a file that may be read.
                identity = identity or lasting or _uuid(fd)
                taken = {each.identity for each in self._known.values()}
                if not identity or identity in taken:
                    identity += b"/%d" % device
                known = self._known[device, statfs_id] = FileSystem(identity, kind in LOCAL)
            return known


def _uuid(fd: int) -> bytes:
    """The UUID of a file's file system; empty if it has none, or the kernel does not tell."""
    try:
        file = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        found = ioctl(file, _GETFSUUID, bytes(17))
        uuid = found[1 : 1 + found[0]]
        return uuid if any(uuid) else b""
    except OSError:
        return b""
    finally:
        os.close(file)
