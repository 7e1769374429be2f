"""
The files of a directory in which a client keeps images: their names, their form, and who uses them.

For each image there is a sparse file of its bytes, and one with its path. C{index} says for each
place of the cache which block has it, and has a checksum of each page; C{server} says whose images
they are.
"""

import ctypes
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from struct import Struct
from typing import Any

import numpy as np
from attrs import frozen

from mufs.wire.pages import BLOCK, PAGE, PAGES

ImageKey = tuple[int, int]

FORMAT = "mUFS cache 1"
SERVER = "server"
INDEX = "index"
PATH = ".path"
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})")

HEAD = Struct("<4Q")
"""Image, generation, number of the block, time of its first use in this run of the client."""
SUMS = Struct(f"<{PAGES}Q")
RECORD = HEAD.size + SUMS.size
"""Bytes of the index for each place; a checksum is 0 where there is no page."""
_RECORDS = np.dtype(
    [("image", "<u8"), ("generation", "<u8"), ("block", "<u8"), ("used", "<u8"),
     ("sums", "<u8", PAGES)]
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_PUNCH_HOLE = 0x03
"""FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE of Linux."""


class UnusableDirectory(Exception):
    """A directory that cannot be used as a cache, and why."""


@frozen
class Summary:
    """What a directory has of an image; the bytes are those that its index speaks of."""

    key: ImageKey
    path: bytes | None
    size: int
    held: int
    used: float


def punch(fd: int, offset: int, length: int) -> None:
    """Give the space of a range of a file back. Raises C{OSError}."""
    if _libc.fallocate(fd, _PUNCH_HOLE, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def server_of(endpoint: str) -> str:
    """The part of an endpoint string that says which server it is: not how to get there."""
    return re.split(r":(?=\w+=)", endpoint, maxsplit=1)[0]


def summaries(path: str) -> list[Summary]:
    """
    What a directory has of each image, also while a client uses it.

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
    """Have a directory, for this user alone if it is new. Raises L{UnusableDirectory}."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise UnusableDirectory(error.strerror) from None


def lock(fd: int) -> None:
    """Let nobody else use a directory as long as it is open. Raises L{UnusableDirectory}."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UnusableDirectory("a client uses it") from None


def _server(fd: int) -> str | None:
    """The server whose images a directory has; C{None} if it is not a cache yet."""
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
    """Have a directory belong to a server from now on, if it does not yet; which one that is."""
    there, found = os.fstat(fd), _server(fd)
    if there.st_uid not in (0, os.geteuid()) or there.st_mode & 0o022:
        raise UnusableDirectory("others may write into it")
    if found is None and server is None:
        raise UnusableDirectory("holds no cache of mUFS")
    if found is None:
        _try_to_punch(fd)
        write_file(fd, SERVER, f"{FORMAT}\n{server}\n".encode("utf-8", "surrogateescape"), True)
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
    """The images of which a directory has files: key, path if it is known, size in bytes."""
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


def write_file(fd: int, name: str, content: bytes, lasting: bool = False) -> None:
    """
    Replace the content of a file of a directory.

    @param lasting: wait until it is on the disk.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(name, flags, 0o600, dir_fd=fd)
    try:
        pwrite(file, content, 0)
        if lasting:
            os.fsync(file)
    finally:
        os.close(file)


def pwrite(fd: int, data: bytes, offset: int) -> None:
    """Write all of it, or raise C{OSError}."""
    if os.pwrite(fd, data, offset) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
