"""
The format of a cache directory: names and contents of its files, and its lock.

Each image has a sparse file with its bytes, and one with its path. C{index} has a record for each
slot of the cache: the block in it, and a checksum for each page of the block. C{server} names the
server of the images.
"""

import ctypes
import errno
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any

import numpy as np
from attrs import frozen

from mufs.wire.pages import BLOCK, BLOCK_PAGES, PAGE, ImageKey

FORMAT = "mUFS cache 1"
SERVER = "server"
INDEX = "index"
PATH = ".path"
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})")

HEAD = Struct("<4Q")
"""Image, generation, number of the block, time of its first use in the client's last run."""
SUMS = Struct(f"<{BLOCK_PAGES}Q")
RECORD = HEAD.size + SUMS.size
"""Bytes of a record; the checksum of a page that is not there is 0."""
_RECORDS = np.dtype(
    [("image", "<u8"), ("generation", "<u8"), ("block", "<u8"), ("used", "<u8"),
     ("sums", "<u8", BLOCK_PAGES)]
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_PUNCH_HOLE = 0x03
"""FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE of Linux."""


class UnusableDirectory(Exception):
    """A directory cannot be used as a cache; the text says why."""


@frozen
class Summary:
    """
    What a cache directory has of an image.

    @ivar held: bytes, according to the index.
    @ivar used: seconds since 1970, or 0 if no block is held.
    """

    key: ImageKey
    path: bytes | None
    size: int
    held: int
    used: float


def punch(fd: int, offset: int, length: int) -> None:
    """Give the space of a range of a file back to the file system. Raises C{OSError}."""
    if _libc.fallocate(fd, _PUNCH_HOLE, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def server_of(endpoint: str) -> str:
    """An endpoint string without its options, which don't identify the server."""
    return re.split(r":(?=\w+=)", endpoint, maxsplit=1)[0]


def summaries(path: str) -> list[Summary]:
    """
    What a cache directory has of each image. A client may be using it.

    @raise UnusableDirectory: when it is no cache.
    """
    fd = open_directory(path)
    try:
        if _server(fd) is None:
            raise UnusableDirectory("holds no cache of mUFS")
        return summaries_of(fd)
    except OSError as error:
        raise UnusableDirectory(error.strerror) from None
    finally:
        os.close(fd)


def open_directory(path: str) -> int:
    """A descriptor of a directory. Raises L{UnusableDirectory}."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UnusableDirectory(error.strerror) from None


def make_directory(path: str) -> None:
    """Make a directory with mode 0700, unless it exists. Raises L{UnusableDirectory}."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise UnusableDirectory(error.strerror) from None


def lock(fd: int) -> None:
    """Lock a directory until C{fd} is closed. Raises L{UnusableDirectory} if it is locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UnusableDirectory("a client uses it") from None


def _server(fd: int) -> str | None:
    """The server that a directory is bound to; C{None} if the directory is empty."""
    try:
        text = _read_file(fd, SERVER).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        text = ""
    if not text and not set(os.listdir(fd)) - {SERVER, "lost+found"}:
        return None
    if not text:
        raise UnusableDirectory("is not empty, and holds no cache of mUFS")
    kind, _, server = text.partition("\n")
    if kind != FORMAT or not server.endswith("\n"):
        raise UnusableDirectory(f"what it holds is not of the form {FORMAT!r}")
    return server[:-1]


def claim(fd: int, server: str | None) -> str:
    """
    Bind a directory to a server, if it is empty.

    @param server: C{None} for the one it is bound to already.
    @return: the server it is bound to.
    @raise UnusableDirectory: when it is bound to another server, is not a cache, or others may
        write to it.
    """
    there, found = os.fstat(fd), _server(fd)
    if there.st_uid not in (0, os.geteuid()) or there.st_mode & 0o022:
        raise UnusableDirectory("others may write into it")
    if found is None and server is None:
        raise UnusableDirectory("holds no cache of mUFS")
    if found is None:
        _try_to_punch(fd)
        write_file(
            fd, SERVER, f"{FORMAT}\n{server}\n".encode("utf-8", "surrogateescape"), sync=True
        )
        return str(server)
    if server not in (None, found):
        raise UnusableDirectory(f"holds the cache of the server at {found}")
    return found


def _try_to_punch(fd: int) -> None:
    trial = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=fd)
    try:
        os.ftruncate(trial, BLOCK)
        punch(trial, 0, PAGE)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise UnusableDirectory("its file system cannot give back parts of a file") from None
    finally:
        os.close(trial)


def found_images(fd: int) -> Iterator[tuple[ImageKey, bytes | None, int]]:
    """The images that a directory has files of: key, path if it is known, size in bytes."""
    for name in os.listdir(fd):
        match = _NAME.fullmatch(name)
        if match is not None:
            try:
                path = _read_file(fd, name + PATH) or None
            except OSError:
                path = None
            size = os.stat(name, dir_fd=fd, follow_symlinks=False).st_size
            yield (int(match[1], 16), int(match[2], 16)), path, size


def summaries_of(fd: int) -> list[Summary]:
    """What an open directory has of each image."""
    index = os.open(INDEX, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=fd)
    try:
        records = read_records(index)
    finally:
        os.close(index)
    held: dict[ImageKey, int] = {}
    used: dict[ImageKey, int] = {}
    for slot, key, _, pages in blocks_of(records):
        held[key] = held.get(key, 0) + PAGE * pages.bit_count()
        used[key] = int(records["used"][slot])  # the latest one comes last
    return [
        Summary(key, path, size, min(size, held.get(key, 0)), used.get(key, 0))
        for key, path, size in found_images(fd)
    ]


def read_records(index: int) -> Any:
    """The records of an index, as an array."""
    with open(index, "rb", closefd=False) as file:
        file.seek(0)
        return np.frombuffer(file.read(os.fstat(index).st_size // RECORD * RECORD), _RECORDS)


def blocks_of(records: Any) -> Iterator[tuple[int, ImageKey, int, int]]:
    """The blocks of an index, least recently used first: slot, image, number, pages."""
    masks = np.packbits(records["sums"] != 0, axis=1, bitorder="little").view("<u4")[:, 0]
    order = np.argsort(records["used"], kind="stable")
    order = order[masks[order] != 0]
    columns = [records[name][order].tolist() for name in ("image", "generation", "block")]
    images, generations, numbers = columns
    return zip(
        order.tolist(), zip(images, generations, strict=True), numbers, masks[order].tolist(),
        strict=True,
    )  # fmt: skip


def _read_file(fd: int, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=fd)
    try:
        return os.read(file, 1 << 17)
    finally:
        os.close(file)


def write_file(fd: int, name: str, content: bytes, *, sync: bool = False) -> None:
    """
    Replace the content of a file in a directory. Raises C{OSError}.

    @param sync: wait until it is on disk.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(name, flags, 0o600, dir_fd=fd)
    try:
        pwrite(file, content, 0)
        if sync:
            os.fsync(file)
    finally:
        os.close(file)


def pwrite(fd: int, data: bytes, offset: int) -> None:
    """Write all of C{data}. Raises C{OSError}, also when there is no room for all of it."""
    pwritev(fd, [data], offset)


def pwritev(fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
    """The same for parts that follow one another."""
    if os.pwritev(fd, parts, offset) < sum(map(len, parts)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
