"""
The control sockets of the services of a host, and how commands talk to services.

A service has a UNIX socket C{server/NAME.sock} or C{client/NAME.sock} in one of L{directories}.
It speaks HTTP, like the C{--status} endpoint.
"""

import json
import os
import re
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mufs.addresses import parse_port, parse_server, split_address
from mufs.filesystem.client.mountpoint import TYPE, mounts
from mufs.options import typed

SERVER, CLIENT = "server", "client"

SYSTEM_DIRECTORY = "/run/mufs"
VARIABLE = "MUFS_RUN"
"""Environment variable that sets another directory, for services and commands."""

MAX_SOCKET_PATH = 107
"""Bytes of the path of a socket (sun_path, without the terminating zero)."""

SERVICE_TIMEOUT = 5.0
"""Seconds that a service may take to answer, and from one line of its answer to the next."""

MAX_ANSWER_BYTES = 64 << 20
"""Bytes that are read of an answer."""


class Unreachable(Exception):
    """No service of mUFS answers; the text says where and why."""


class Nobody(Unreachable):
    """Nobody listens at the address."""


def directories() -> list[str]:
    """Directories of sockets: that of the system first, then that of the user."""
    given, own = os.environ.get(VARIABLE), os.environ.get("XDG_RUNTIME_DIR")
    if given:
        return [given]
    if os.geteuid() == 0 or not own:
        return [SYSTEM_DIRECTORY]
    return [SYSTEM_DIRECTORY, os.path.join(own, "mufs")]


def new_socket(kind: str, name: str) -> str:
    """
    The path for the socket of a service, in the first directory that can be written to. The
    directory is created if it is missing.

    @raise OSError: when there is no such directory.
    """
    failed: OSError = PermissionError()
    for directory in directories():
        try:
            for path in (directory, os.path.join(directory, kind)):
                with suppress(FileExistsError):
                    os.mkdir(path)
                    os.chmod(path, 0o755)
            if os.access(path, os.W_OK | os.X_OK):
                return _path(directory, kind, name)
            failed = PermissionError(13, "cannot be written", path)
        except OSError as error:
            failed = error
    raise failed


def _path(directory: str, kind: str, name: str) -> str:
    path = os.path.join(directory, kind, f"{name}.sock")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        digest = sha256(os.fsencode(name)).hexdigest()[:16]
        room = MAX_SOCKET_PATH - len(os.fsencode(path)) + len(name) - len(digest) - 1
        path = os.path.join(directory, kind, f"{name[: max(0, room)]}-{digest}.sock")
    return path


def escape(path: str) -> str:
    """A path as a single name, in the manner of C{systemd-escape --path}."""
    text = b"-".join(
        re.sub(rb"[^\w:.]", lambda found: b"\\x%02x" % found[0][0], name)
        for name in os.fsencode(path).split(b"/")
        if name
    ).decode()
    return r"\x2e" + text[1:] if text.startswith(".") else text or "-"


def unbracketed(address: str) -> str:
    """An address without the brackets of IPv6, as it is part of the name of a socket."""
    return address.replace("[", "").replace("]", "")


def sockets(kind: str | None = None) -> list[str]:
    """The sockets that exist, servers first; some may be left over from services that died."""
    kinds = [SERVER, CLIENT] if kind is None else [kind]
    return [
        str(path)
        for each in kinds
        for directory in directories()
        for path in sorted(Path(directory, each).glob("*.sock"))
    ]


def hidden_directories() -> list[str]:
    """The directories of sockets that this user may not list."""
    paths = [os.path.join(each, kind) for each in directories() for kind in (SERVER, CLIENT)]
    return [path for path in paths if _is_hidden(path)]


def _is_hidden(path: str) -> bool:
    try:
        os.listdir(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def socket_of_mount(mount: str) -> str:
    """
    The socket of the client at a mount point.

    @raise Unreachable: when there is none.
    """
    for directory in directories():
        path = _path(directory, CLIENT, escape(mount))
        if os.path.exists(path):
            return path
    raise Unreachable(f"{mount}: the client there has no control socket")


def locate(path: str) -> tuple[str, str]:
    """
    The mount of mUFS that contains a path, and the rest of the path. Nothing on the mount itself
    is accessed: the server may be away.

    @raise Unreachable: when there is no such mount.
    """
    points = {os.fsdecode(point) for point, there in mounts() if there.type == TYPE}
    at = "/"
    names = [name for name in os.path.abspath(path).split("/") if name]
    for number, name in enumerate(names, 1):
        at = os.path.join(at, name)
        if at not in points:
            at = os.path.realpath(at)
        if at in points:
            return at, "/".join(names[number:])
    mount = min(points, default="/mnt/images")
    raise Unreachable(f"{typed(path)} is not on a mount of mUFS, such as {mount}")


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("mufs", timeout=SERVICE_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SERVICE_TIMEOUT)
        self.sock.connect(self._path)


def _connection(where: str) -> tuple[HTTPConnection, str]:
    """A connection to a service, and the prefix of all paths there."""
    if where.startswith("/"):
        return _UnixConnection(where), ""
    kind = where.partition(":")[0]
    try:
        if kind in ("http", "https"):
            url = urlsplit(where)
            secure = HTTPSConnection if kind == "https" else HTTPConnection
            prefix = url.path.rstrip("/")
            return secure(url.hostname or "", url.port, timeout=SERVICE_TIMEOUT), prefix
        if kind in ("tcp", "unix"):
            address = parse_server(where)
            if address.path is not None:
                return _UnixConnection(address.path), ""
            return HTTPConnection(address.host, address.port, timeout=SERVICE_TIMEOUT), ""
        host, port = split_address(where)
        return HTTPConnection(host, parse_port(port or ""), timeout=SERVICE_TIMEOUT), ""
    except (ValueError, HTTPException):
        raise Unreachable(
            f"{typed(where)} is neither a path on a mount nor an address, such as /mnt/images, "
            "7080, HOST:7080, http://HOST:7080 or unix:PATH"
        ) from None


def ask(where: str) -> dict[str, Any]:
    """
    The figures of a service.

    @param where: the path of a socket, a URL, or an endpoint string of C{tcp:} or C{unix:}.
    @raise Unreachable: when the service does not answer.
    """
    with _answer(where, "GET", "/status.json") as response:
        return _record(where, response.read(MAX_ANSWER_BYTES))


def follow(
    where: str, path: str, body: Mapping[str, object]
) -> Generator[dict[str, Any], None, None]:
    """
    Run a task of a service, and yield its reports until it has ended. Closing the iterator cancels
    the task.

    @raise Unreachable: when the service does not answer, or goes away.
    """
    with _answer(where, "POST", path, body=json.dumps(body)) as response:
        while line := response.readline(MAX_ANSWER_BYTES):
            yield _record(where, line)
    raise Unreachable(f"{where}: ended")


@contextmanager
def _answer(
    where: str, method: str, path: str, *, body: str | None = None
) -> Iterator[HTTPResponse]:
    connection, base = _connection(where)
    try:
        connection.request(method, base + path, body)
        response = connection.getresponse()
        if response.status != 200:
            raise Unreachable(f"{where}: {response.status} {response.reason}")
        yield response
    except (OSError, HTTPException, UnicodeError) as error:
        if isinstance(error, TimeoutError):
            raise Unreachable(f"{where}: no answer within {SERVICE_TIMEOUT:g} s") from None
        why = getattr(error, "strerror", None) or "what answers is not mUFS"
        gone = isinstance(error, ConnectionRefusedError | FileNotFoundError)
        raise (Nobody if gone else Unreachable)(f"{where}: {why}") from None
    finally:
        connection.close()


def _record(where: str, text: bytes) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise Unreachable(f"{where}: what answers is not mUFS")
    return record
