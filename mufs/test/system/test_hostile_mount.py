"""A mount whose server violates the protocol, as the kernel sees it."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from typing import Any

import msgspec
from attrs import asdict, evolve
from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.doubles import make_attributes
from mufs.test.support.loopback import make_loopback, why_unavailable
from mufs.wire.channel import Data, Framer, Read, Type, pack_tagged, parse_tagged
from mufs.wire.metadata import (
    VERSION,
    At,
    Attributes,
    DataMap,
    Failure,
    Opened,
    Statistics,
    Welcome,
    decode,
    encode,
)

FILE = make_attributes(5)
DATA = DataMap(0, 5, (0, 5))
DIRECTORY = evolve(FILE, mode=stat.S_IFDIR | 0o755, ino=1)
LONG = b"n" * 300

LISTINGS: dict[bytes, list[tuple[bytes, Attributes]]] = {
    b"up": [(b"right", FILE), (b"..", FILE)],
    b"dot": [(b".", FILE)],
    b"slash": [(b"right", FILE), (b"../../etc/passwd", FILE)],
    b"zero": [(b"right\0wrong", FILE)],
    b"none": [(b"", FILE)],
    b"overlong": [(b"n" * 1025, FILE)],
    b"negative": [(b"right", evolve(FILE, size=1 << 63))],
    b"twice": [(b"right", FILE), (b"other", FILE), (b"right", FILE)],
    b"long": [(LONG, FILE), (b"\xff\n", FILE), (b"...", FILE)],
    b"strange": [
        (b"right", FILE),
        (b"type", evolve(FILE, mode=0o777)),
        (b"device", evolve(FILE, mode=stat.S_IFBLK | 0o666, rdev=1 << 63)),
        (b"set", evolve(FILE, mode=stat.S_IFREG | 0o6777)),
        (b"large", evolve(FILE, size=(1 << 63) - 1, blocks=(1 << 64) - 1)),
        (b"time", evolve(FILE, mtime=-(1 << 63), ctime=(1 << 64) - 1, nlink=(1 << 64) - 1)),
    ],
}
"""The listings that the server sends, by directory."""

LINKS = {b"zero": b"a\0b", b"none": b"", b"overlong": b"x" * 4096, b"right": b"there"}


class Hostile:
    """A server in its own threads that answers from tables."""

    def __init__(self, port: int) -> None:
        self._listening = socket.create_server(("127.0.0.1", port))
        self._sockets = [self._listening]
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        for each in self._sockets:
            each.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._sockets.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        framer = Framer()
        try:
            while received := connection.recv(65536):
                for kind, offset, body in framer.feed(received):
                    connection.sendall(self._answer(Type(kind), offset, body))
        except OSError:
            connection.close()

    def _answer(self, kind: Type, offset: int, body: bytes) -> bytes:
        tag, rest = parse_tagged(body)
        if kind is Type.HELLO:
            welcome = Welcome(VERSION, "no address", 1, ("", 0), 1400)
            return pack_tagged(Type.WELCOME, tag, encode(welcome))
        if kind is Type.READ:
            return Data(1, 1, Read.parse(offset, body).offset, b"right").encode()
        if kind is Type.STATFS:
            return pack_tagged(Type.REPLY, tag, encode(Statistics(1, 2, 3, 4, 5, 6, 7, 8, 9)))
        if kind in (Type.CLOSE, Type.PING):
            return pack_tagged(Type.PONG, tag, b"")
        return pack_tagged(*self._about(kind, tag, decode(At, rest).path))

    def _about(self, kind: Type, tag: int, path: bytes) -> tuple[Type, int, bytes]:
        above, _, name = path.rpartition(b"/")
        found: Any = dict(LISTINGS.get(above, ())).get(name)
        if not path or path in LISTINGS:
            found = DIRECTORY
        elif above == b"links" and name in LINKS:
            found = evolve(FILE, mode=stat.S_IFLNK | 0o777)
        elif path == b"links":
            found = DIRECTORY
        if found is None:
            return Type.ERROR, tag, encode(Failure("ENOENT"))
        if kind is Type.READDIR:
            entries = [(name, asdict(each)) for name, each in LISTINGS.get(path, ())]
            return Type.REPLY, tag, msgspec.msgpack.encode({"entries": entries})
        if kind is Type.READLINK:
            return Type.REPLY, tag, msgspec.msgpack.encode({"target": LINKS[name]})
        if kind is Type.OPEN:
            return Type.REPLY, tag, encode(Opened(1, 1, 1, bytes(16), FILE, DATA))
        return Type.REPLY, tag, encode(found)


def mounts() -> list[str]:
    """Return the kernel's list of mounts."""
    with open("/proc/self/mountinfo") as table:
        return table.readlines()


class HostileMountTests(SynchronousTestCase):
    """The mount of a client with a hostile server."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Start the server, and mount."""
        self.loopback = make_loopback(self)
        server = Hostile(self.loopback.port)
        self.addCleanup(server.close)
        self.client = self.loopback.start_client("here", "--timeout", "1")
        self.mount = os.fsencode(self.loopback.mount_point("here"))

    def path(self, *names: bytes) -> bytes:
        """Return a path in the mount."""
        return os.path.join(self.mount, *names)

    def assert_fails(self, call: Any, path: bytes) -> None:
        """Assert that a call fails with EIO."""
        self.assertEqual(self.assertRaises(OSError, call, path).errno, errno.EIO)

    def test_hostile(self) -> None:
        """
        Invalid names, links and attributes give EIO, unusual ones do no harm, valid ones are
        served all the time, and the log has one line for each error.
        """
        for name in (b"up", b"dot", b"slash", b"zero", b"none", b"overlong", b"negative"):
            self.assert_fails(os.listdir, self.path(name))
        for name in (b"zero", b"none", b"overlong"):
            self.assert_fails(os.readlink, self.path(b"links", name))
        self.assertEqual(os.readlink(self.path(b"links", b"right")), b"there")
        self.assertEqual(sorted(os.listdir(self.path(b"twice"))), [b"other", b"right"])
        self.assertEqual(sorted(os.listdir(self.path(b"long"))), sorted([LONG, b"\xff\n", b"..."]))
        self.assertEqual(os.stat(self.path(b"long", LONG)).st_size, 5)
        for name in sorted(os.listdir(self.path(b"strange"))):
            try:
                os.lstat(self.path(b"strange", name))
            except OSError as error:
                self.assertEqual(error.errno, errno.EIO)
        self.assertRaises(OSError, open, self.path(b"strange", b"device"), "rb")
        with open(self.path(b"strange", b"right"), "rb") as file:
            self.assertEqual(file.read(), b"right")
        (options,) = [line.split()[5] for line in mounts() if os.fsdecode(self.mount) in line]
        self.assertLess({"ro", "nosuid", "nodev"}, set(options.split(",")))
        output = self.client.output
        self.assertNotIn("Traceback", output)
        self.assertIn("closing the connection: not a Names: b'..' is no name", output)
        self.assertIn("cannot listen to the group", output)
