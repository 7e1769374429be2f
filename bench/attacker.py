"""A hostile client: a process that `hostile.py` starts beside honest readers.

    python bench/attacker.py KIND SECONDS PACKETS

It floods the server of a lab for SECONDS, with PACKETS a second; 0 means as many as possible.
"""

from __future__ import annotations

import random
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

from mufs.test.support.lab import SERVER_ADDRESS
from mufs.test.support.processes import SERVER_PORT
from mufs.wire.channel import (
    Framer,
    Priority,
    Read,
    Repair,
    Sent,
    Type,
    pack,
    pack_tagged,
    parse_tagged,
)
from mufs.wire.metadata import VERSION, At, Close, Hello, Opened, decode, encode
from mufs.wire.pages import PAGE

VICTIM = b"other.img"
"""An image that no honest reader reads."""
DIRECTORY = b"many"
"""A directory with many names."""
MAX_BATCH_PACKETS = 1000
"""Packets written in one batch."""
MAX_CONNECTIONS = 2000
"""Connections open at a time."""
ALL = (1 << 94) - 1
PRIORITIES = list(Priority)


class Connection:
    """A client's end of the request channel that keeps to no limits."""

    def __init__(self) -> None:
        self.socket = socket.create_connection((SERVER_ADDRESS, SERVER_PORT), timeout=10)
        self._framer = Framer()
        self._came: deque[tuple[int, int, bytes]] = deque()
        self.transfer = 0

    def open(self) -> Opened:
        """Send HELLO and open the image."""
        self.socket.sendall(pack_tagged(Type.HELLO, 0, encode(Hello(VERSION, "attacker"))))
        self.socket.sendall(pack_tagged(Type.OPEN, 1, encode(At(VICTIM))))
        while True:
            for kind, _, body in self._framer.feed(self.socket.recv(65536)):
                if kind == Type.REPLY:
                    return decode(Opened, parse_tagged(body)[1])

    def take(self) -> None:
        """Read what the server sent, and remember the number of the last transfer."""
        with suppress(BlockingIOError):
            for kind, offset, body in self._framer.feed(self.socket.recv(1 << 20)):
                if kind == Type.SENT:
                    self.transfer = Sent.parse(offset, body).transfer


def reads(opened: Opened, connection: Connection) -> Iterator[bytes]:
    """READs of one to 256 pages at random offsets, with random priorities."""
    pages = opened.attributes.size // PAGE
    for tag in range(1, 1 << 32):
        count = random.choice((1, 1, 8, 32, 256))
        offset = PAGE * random.randrange(pages - count)
        yield Read(tag, opened.handle, offset, PAGE * count, random.choice(PRIORITIES)).encode()


def tcp(opened: Opened, connection: Connection) -> Iterator[bytes]:
    """READs of 1 MiB over TCP at random offsets."""
    for tag in range(1, 1 << 32):
        offset = random.randrange(opened.attributes.size >> 20) << 20
        yield Read(tag, opened.handle, offset, 1 << 20, Priority.BLOCKED, True).encode()


def repairs(opened: Opened, connection: Connection) -> Iterator[bytes]:
    """REPAIRs of all segments of recent transfers."""
    page = 0
    for number in range(1, 1 << 32):
        if number % 1000 == 1:
            # The answer to a READ contains a recent transfer number.
            page += 1
            yield Read(1, opened.handle, PAGE * page, PAGE, Priority.BLOCKED).encode()
        transfer = max(1, connection.transfer - random.randrange(400))
        yield Repair(1, transfer, 1 + number % 2, ALL).encode()


def metadata(opened: Opened, connection: Connection) -> Iterator[bytes]:
    """GETATTR, READDIR of a large directory, OPEN and CLOSE."""
    close = pack(Type.CLOSE, encode(Close(opened.handle)))
    for tag in range(1, 1 << 31):
        yield pack_tagged(Type.GETATTR, tag, encode(At(VICTIM)))
        if tag % 8 == 0:
            yield pack_tagged(Type.OPEN, tag, encode(At(VICTIM)))
            yield close
        if tag % 50 == 0:
            yield pack_tagged(Type.READDIR, tag, encode(At(DIRECTORY)))


def anything(opened: Opened, connection: Connection) -> Iterator[bytes]:
    """Requests with long answers."""
    pages = opened.attributes.size // PAGE
    for tag in range(1, 1 << 31):
        offset = PAGE * random.randrange(pages - 256)
        yield Read(tag, opened.handle, offset, PAGE * 256, Priority.BLOCKED, tag % 2 == 0).encode()
        yield Repair(tag, max(1, connection.transfer - random.randrange(400)), 2, ALL).encode()
        yield pack_tagged(Type.READDIR, tag, encode(At(DIRECTORY)))
        yield pack_tagged(Type.PING, tag, b"")


Flood = Callable[[Opened, Connection], Iterator[bytes]]
FLOODS: dict[str, Flood] = {
    "reads": reads,
    "tcp": tcp,
    "repairs": repairs,
    "metadata": metadata,
    "mute": anything,
}


def flood(make: Flood, listens: bool, until: float, rate: float) -> int:
    """Send these packets; return how many were sent."""
    connection = Connection()
    packets = make(connection.open(), connection)
    connection.socket.setblocking(False)
    sent, left, began = 0, b"", time.monotonic()
    while (now := time.monotonic()) < until:
        wanted = (
            MAX_BATCH_PACKETS
            if not rate
            else min(MAX_BATCH_PACKETS, int((now - began) * rate) - sent)
        )
        if not left and wanted > 0:
            left = b"".join(next(packets) for _ in range(wanted))
            sent += wanted
        readers = [connection.socket] if listens else []
        writers = [connection.socket] if left else []
        readable, writable, _ = select.select(readers, writers, [], 0.01)
        try:
            if readable:
                connection.take()
            if writable:
                left = left[connection.socket.send(left) :]
        except OSError:  # disconnected: connect again
            with suppress(OSError):
                connection.socket.close()
                connection = Connection()
                packets, left = make(connection.open(), connection), b""
                connection.socket.setblocking(False)
    return sent


def connections(until: float, rate: float) -> int:
    """Open connections continuously without sending anything; return how many."""
    made: deque[socket.socket] = deque()
    count, began = 0, time.monotonic()
    while (now := time.monotonic()) < until:
        if rate and count >= (now - began) * rate:
            time.sleep(0.001)
            continue
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex((SERVER_ADDRESS, SERVER_PORT))
        made.append(one)
        count += 1
        if len(made) > MAX_CONNECTIONS:
            made.popleft().close()
    return count


def main() -> None:
    kind, seconds, rate = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    until = time.monotonic() + seconds
    if kind == "connections":
        done = connections(until, rate)
    else:
        done = flood(FLOODS[kind], kind != "mute", until, rate)
    print(f"{done} in {seconds:g} s", flush=True)


if __name__ == "__main__":
    main()
