"""
The fuzzing targets: each takes arbitrary bytes, and raises when mUFS does something wrong.

The tests run them with hypothesis, `make fuzz` with atheris (see C{fuzz.py}). The result of a
target depends only on its input, so that a case can be repeated.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import pairwise
from random import Random
from typing import Any

from attrs import evolve, frozen
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import ConnectionLost
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure as Error
from zope.interface import implementer

from mufs.cache.server.sent import SentTransfer
from mufs.communication.client.reassembly import Reassembly
from mufs.communication.server.channel import ServerChannel
from mufs.communication.server.limits import MAX_HANDLES
from mufs.communication.server.sender import seal_transfer, trains
from mufs.filesystem.client.images import OpenImage
from mufs.filesystem.client.pull import MAX_PULLS
from mufs.filesystem.client.server_pulls import MAX_SERVER_PULLS
from mufs.filesystem.server.library import ExportedDirectory
from mufs.test.simulated.test_hostile_server import WELCOME, Client
from mufs.test.support.channels import SIZE, Server
from mufs.test.support.doubles import FakeTransport, receive
from mufs.test.support.memory import MemoryImage
from mufs.test.support.peers import opened
from mufs.test.support.properties import packets_of
from mufs.wire import metadata
from mufs.wire.channel import (
    HEADER,
    MAX_DATA,
    Data,
    Framer,
    Gone,
    Key,
    Occasion,
    Priority,
    ProtocolError,
    Read,
    Repair,
    Sent,
    Type,
    pack,
    pack_tagged,
    parse_tagged,
)
from mufs.wire.metadata import (
    UNKNOWN,
    At,
    Attributes,
    Close,
    DataMap,
    Failure,
    Link,
    MapRequest,
    Names,
    Opened,
    Pull,
    Pulled,
    Report,
    Statistics,
    decode,
    encode,
)
from mufs.wire.packing import Encoding, MalformedPacking, make_compressor, unpack, zero_pages
from mufs.wire.packing import pack as pack_pages
from mufs.wire.pages import BLOCK, EXTENT, PAGE
from mufs.wire.sealing import Keys, unseal
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    MAC_SIZE,
    REPAIRED,
    SEGMENT,
    Descriptor,
    MalformedSegment,
    cut,
    cut_parity,
    parse,
    segment_count,
)
from mufs.wire.segments import HEADER as SEGMENT_HEADER


@frozen
class Target:
    """
    A fuzzing target.

    @ivar run: takes arbitrary bytes; raises when something is wrong.
    @ivar seeds: returns initial inputs made of real packets.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


class Script:
    """Decodes an input into numbers and byte strings; numbers after its end are 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, size: int = 1) -> int:
        """Return the next C{size} bytes as a number."""
        return int.from_bytes(self.piece(size), "big")

    def piece(self, size: int) -> bytes:
        """Return the next bytes, at most C{size}."""
        found = self._data[self._at : self._at + size]
        self._at += size
        return found

    def choice(self, values: Any) -> Any:
        """Return one of the values."""
        return values[self.number() % len(values)]


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@contextmanager
def clean_log() -> Iterator[None]:
    """Assert that meanwhile only readable lines are logged, and no tracebacks."""
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        events.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(observe)
    for event in events:
        text = formatEvent(event)
        if "log_failure" in event:
            raise AssertionError(f"{text}\n{event['log_failure'].getTraceback()}")
        right = 0 < len(text) < 1000 and not _CONTROL.search(text)
        if event.get("log_level", LogLevel.info) >= LogLevel.info and not right:
            raise AssertionError(f"not a readable log line: {text!r}")


def _framer(data: bytes) -> None:
    """A stream gives the same packets however it is cut, and at most one packet is buffered."""
    script = Script(data)
    cuts = sorted(script.number(2) for _ in range(script.number() % 8))
    stream = script.piece(len(data))

    def packets(parts: list[bytes]) -> tuple[list[tuple[int, int, bytes]], bool]:
        framer, found = Framer(), []
        try:
            for part in parts:
                for packet in framer.feed(part):
                    found.append(packet)
                assert len(framer._buffer) <= HEADER.size + MAX_DATA
        except ProtocolError:
            return found, True
        return found, False

    whole = packets([stream])
    assert whole == packets([stream[a:b] for a, b in pairwise([0, *cuts, len(stream)])])
    assert stream.startswith(b"".join(pack(kind, body, offset) for kind, offset, body in whole[0]))


_STRUCTS: list[Any] = [Read, Sent, Data, Repair, Gone, Key]


def _structs(data: bytes) -> None:
    """Parsing a packet's data fails, or gives fields that encode to the same packet."""
    script = Script(data)
    kind, offset = script.choice(_STRUCTS), script.number(4)
    body = script.piece(len(data))
    try:
        value = kind.parse(offset, body)
    except ProtocolError:
        return
    ((_, again, encoded),) = Framer().feed(value.encode())
    if kind is Repair:
        encoded, body = encoded.rstrip(b"\0"), body.rstrip(b"\0")
    assert encoded == body
    assert kind in (Repair, Gone, Key) or again == offset
    assert kind.parse(again, encoded) == value


_MAPS: list[Any] = [
    metadata.Hello,
    metadata.Welcome,
    DataMap,
    MapRequest,
    At,
    Attributes,
    Link,
    Names,
    Opened,
    Close,
    Statistics,
    Failure,
    Report,
    Pull,
    Pulled,
]


def _metadata(data: bytes) -> None:
    """Decoding a map fails, or gives values that survive encoding and decoding."""
    kind = Script(data).choice(_MAPS)
    try:
        value = decode(kind, data[1:])
    except ProtocolError as error:
        assert str(error).isprintable()
        return
    assert decode(kind, encode(value)) == value
    if isinstance(value, Failure):
        assert value.error().errno


def _segments(data: bytes) -> None:
    """The parsed packets of a datagram encode to its first bytes, up to the malformed part."""
    size = 64 + Script(data).number(2) % (SEGMENT - 63)
    datagram, made = data[2:], bytearray()
    try:
        for packet in parse(datagram, size):
            if len(packet) == 3:
                number, length, rows = packet
                assert 0 < length <= size
                for row in rows:
                    made += SEGMENT_HEADER.pack(2, length, number & 0xFFFFFFFF) + row.tobytes()
                    number += 1
            else:
                made += packet[1].encode(packet[0], size)[:-MAC_SIZE] + packet[1].mac
    except MalformedSegment as error:
        assert str(error).isprintable()
    else:
        assert len(made) == len(datagram)
    assert datagram.startswith(made)


def _transfer(data: bytes) -> None:
    """
    Segments and parity in any order, duplicated and lost, give the original bytes if there are
    enough of them, and otherwise nothing.
    """
    script = Script(data)
    size = 64 + script.number(2) % (SEGMENT - 63)
    length = 1 + script.number(2) % (8 * size)
    first = (script.number() - 128) & 0xFFFFFFFF
    content = Random(length).randbytes(length)
    keys = Keys(b"secret")
    descriptor = Descriptor(1 + script.number(), first, 1, 1, script.number() % 4 * PAGE, length)
    if descriptor.offset % BLOCK + length > BLOCK:
        return
    sent = seal_transfer(keys, descriptor, content, segment=size)
    rows = packets_of(trains(sent, (1 << sent.count) - 1, 1))
    count = len(rows) + 8
    flip = script.number(2)
    reassembly, came, done = Reassembly(size), set(), []
    described, changed = False, False
    while script:
        index = script.number()
        if index == 255 and not described:
            described = True
            done += reassembly.describe(sent.descriptor, True)
            continue
        place = index % count - len(rows)
        part = bytearray(
            rows[place] if place < 0 else cut_parity(first, sent.sealed, place, 1, size).tobytes()
        )
        if index == 254 and flip % len(part) >= SEGMENT_HEADER.size:
            part[flip % len(part)] ^= 1
            changed = True
        came.add(index % count)
        (run,) = parse(bytes(part), size)
        assert len(run) == 3
        done += reassembly.segments(run)
    if not described:
        done += reassembly.describe(sent.descriptor, True)
    cipher = keys.cipher(1, 1)
    opened = [unseal(cipher, each, sealed) for each, sealed in done]
    found = [None if data is None else bytes(data) for data in opened]
    assert len(found) == (len(came) >= len(rows))
    assert found in ([], [content]) or (changed and found == [None])


def _packing(data: bytes) -> None:
    """
    Any bytes unpack to as many as the descriptor says, with the zeros that are told, or to nothing;
    what was packed unpacks to itself.
    """
    script = Script(data)
    encoding = Encoding(1 + script.number() % 2)
    length = 1 + script.number(3) % EXTENT
    packed, memory = memoryview(data[4:]), memoryview(bytearray(b"x" * EXTENT))
    try:
        content, zeros = unpack(encoding, packed, length, memory)
    except MalformedPacking as error:
        assert str(error).isprintable()
    else:
        assert len(content) == length
        assert zeros & ~zero_pages(content) == 0
    again, repacked = pack_pages(data, zero_pages(data), _COMPRESSOR)
    if again != Encoding.PLAIN and data:
        content, zeros = unpack(again, memoryview(repacked), len(data), memory)
        assert (bytes(content), zeros) == (data, zero_pages(data))


_PATHS = [b"disk.img", b"", b"none", b"../x", b"/", b"\xff" * 300, b"a/b", b"\0"]
_ASKED = [Type.OPEN, Type.GETATTR, Type.READDIR, Type.READLINK, Type.STATFS]
_LENGTHS = [PAGE, BLOCK, SIZE, 3 * PAGE, 1000, 0, 1 << 24, 0xFFFFFFFF]


def _from_client(script: Script) -> bytes:
    """Return a packet of a client that knows the protocol but violates it."""
    match script.number() % 10:
        case 0 | 1:
            kind, tag = script.choice(_ASKED), script.number() % 8
            return pack_tagged(kind, tag, encode(At(script.choice(_PATHS))))
        case 2 | 3:
            block, flags = script.number(), script.number()
            return Read(
                script.number() % 8,
                script.number() % 8,
                (block >> 2) * PAGE + block % 2,
                script.choice(_LENGTHS),
                Priority(flags % 3),
                flags > 127,
            ).encode()
        case 4:
            return Repair(
                script.number() % 8,
                script.number() % 8,
                script.number() % 4,
                int.from_bytes(script.piece(script.number()), "little"),
            ).encode()
        case 5:
            return pack(Type.CLOSE, encode(Close(script.number() % 8)))
        case 6:
            return pack(script.number(), script.piece(script.number()), script.number(4))
        case 7:
            reads, text = script.number(), script.piece(script.number()).decode("latin-1")
            report = {
                "reads": reads,
                "hits": script.number(),
                "lag": script.number(4),
                "works": reads < 128,
                "multicast": text,
            }
            return pack_tagged(Type.PING, script.number() % 8, encode(report))
        case 8 if script.number() % 2:
            pulled = {
                "number": script.number() % 4,
                "held": script.number(2),
                "size": script.number(2),
                "ended": script.number() < 64,
                "error": "text",
            }
            return pack(Type.PULLED, encode(pulled))
        case 9:
            asked = MapRequest(script.number() % 8, script.choice(_LENGTHS))
            return pack_tagged(Type.MAP, script.number() % 8, encode(asked))
    return script.piece(script.number())


def _server(data: bytes) -> None:
    """
    Whatever a client sends, and whenever it disconnects, it is sent only packets, the server's
    memory for it is bounded, and another client is served.
    """
    script = Script(data)
    with clean_log():
        server = Server(at_once=bool(script.number() % 2))
        channel, wire = server.connect(hello=bool(script.number() % 4))
        pushes: list[Deferred[Any]] = []
        while script:
            match script.number() % 16:
                case 0:
                    server.clock.advance(script.number() / 200)
                case 1:
                    server.answer()
                case 2 if not wire.ended:
                    channel.pauseProducing()
                case 3 if not wire.ended:
                    channel.resumeProducing()
                case 4:
                    _lose_client(channel, wire)
                    channel, wire = server.connect()
                case 14:
                    pushes += _push(server)
                case 15 if pushes:
                    pushes.pop().cancel()
                case _:
                    packet, at = _from_client(script), script.number()
                    for piece in (packet[:at], packet[at:]):
                        if piece and not wire.ended:
                            channel.dataReceived(piece)
            assert len(channel._framer._buffer) <= HEADER.size + MAX_DATA
            assert len(channel.handles) <= MAX_HANDLES
            opens = sum(image.opens for image, _ in server.factory.access_statistics)
            assert opens == len(channel.handles)
            for kind, _, body in wire.packets():
                assert kind >= 128
                parse_tagged(body)
        _lose_client(channel, wire)
        server.at_once = True
        for push in pushes:
            push.cancel()
        for _ in range(3):
            server.answer()
            server.clock.advance(1)
        other, its_wire = server.connect()
        other.dataReceived(pack_tagged(Type.OPEN, 1, encode(At(b"disk.img"))))
        other.dataReceived(Read(2, 1, 3 * BLOCK, 1000, Priority.BLOCKED).encode())
        server.clock.advance(1)
        sent = [Sent.parse(o, body) for kind, o, body in its_wire.packets() if kind == Type.SENT]
        assert [(each.tag, each.offset + each.length) for each in sent] == [(2, SIZE)]
        assert server.factory.channels == {other}
        assert not server.factory.pushes._running
        assert len(server.queue) == 0
        _lose_client(other, its_wire)


def _push(server: Server) -> list[Deferred[Any]]:
    """Start to push the image to all clients; errors are ignored."""
    clients = [each for each in server.factory.channels if each.name]
    push = server.factory.pushes.push
    pushing = maybeDeferred(
        push, b"disk.img", SIZE, clients=clients, names=None, report=lambda _: None
    )
    pushing.addErrback(lambda failure: failure.trap(OSError, CancelledError) and None)
    return [pushing]


def _lose_client(channel: ServerChannel, wire: FakeTransport) -> None:
    channel.stopProducing()
    channel.connected = 0
    wire.disconnected = True
    channel.connectionLost(Error(ConnectionLost()))


_COMPRESSOR = make_compressor(1)
_NOISE = Random(1).randbytes(BLOCK + 3 * PAGE + 77)
# Two pages of the second transfer are zero, and a part of the others compresses.
_CONTENT = b"".join(
    [_NOISE[:PAGE], bytes(2 * PAGE), _NOISE[3 * PAGE : BLOCK // 2], b"a line of text\n" * 2000]
)
_CONTENT += _NOISE[len(_CONTENT) :]
_IMAGE = MemoryImage(5, 6, _CONTENT)
_KEYS = Keys(b"secret", random=bytes)
_KEY = _KEYS.key(5, 6)
_SOURCE = ("10.0.0.1", 40000)
_FIRST = 0xFFFFFF00

_VALUES: list[Any] = [
    _IMAGE.attributes,
    Link(b"there"),
    Names([(b"name", _IMAGE.attributes)]),
    Failure("EIO"),
    Failure("ESTALE", "two\nlines"),
    Failure("EFANCY"),
    opened(1, _IMAGE, _KEY),
    opened(2, _IMAGE),
    evolve(opened(3, _IMAGE), generation=7),
    evolve(opened(4, _IMAGE), attributes=evolve(_IMAGE.attributes, size=PAGE), data=UNKNOWN),
    evolve(opened(4, _IMAGE), attributes=evolve(_IMAGE.attributes, size=(1 << 63) - 1)),
    Statistics(1, 2, 3, 4, 5, 6, 7, 8, 9),
    {},
    decode(metadata.Welcome, WELCOME),
    evolve(opened(5, _IMAGE), data=DataMap(0, PAGE, (5, 600))),
    DataMap(PAGE, 3 * PAGE, (2 * PAGE, 3 * PAGE)),
    DataMap(0, len(_CONTENT), ()),
]
_ANSWERS = [Type.REPLY, Type.MORE, Type.ERROR, Type.WELCOME, Type.PONG, Type.SEGMENTS, Type.KEY]


@cache
def _sent() -> list[SentTransfer]:
    """Return transfers of pages, of a block, of the image's end, and again of the first page."""
    made, number = [], _FIRST
    for count, (offset, length) in enumerate(
        [(0, PAGE), (PAGE, 3 * PAGE), (0, BLOCK), (BLOCK, 3 * PAGE + 77), (0, PAGE)]
    ):
        content = _CONTENT[offset : offset + length]
        encoding, packed = pack_pages(content, zero_pages(content), _COMPRESSOR)
        descriptor = Descriptor(
            *(count + 1, number & 0xFFFFFFFF, 5, 6, offset, len(packed), length, encoding)
        )
        made.append(seal_transfer(_KEYS, descriptor, packed, segment=SEGMENT))
        number += segment_count(len(packed), SEGMENT) + 32
    return made


def _control(descriptor: Descriptor, phase: int) -> bytes:
    """Make an authentic control packet."""
    return descriptor.encode(phase, SEGMENT, _KEYS.epoch.control)


@cache
def _datagrams(transfer: int) -> list[bytes]:
    """Return the datagrams of a transfer: announcement, segments, parity, completion."""
    sent = _sent()[transfer]
    descriptor = sent.descriptor
    return [
        _control(descriptor, ANNOUNCEMENT),
        *packets_of(trains(sent, (1 << sent.count) - 1, 1)),
        *packets_of(cut_parity(descriptor.first, sent.sealed, 0, 4)),
        _control(descriptor, COMPLETION),
    ]


@cache
def _train(transfer: int) -> bytes:
    """Return a transfer in one train, without parity."""
    sent = _sent()[transfer]
    packets = packets_of(trains(sent, (1 << sent.count) - 1))
    ends = [_control(sent.descriptor, phase) for phase in (ANNOUNCEMENT, COMPLETION)]
    return b"".join([ends[0], *packets, ends[1]])


def _datagram(script: Script) -> bytes:
    """Return a datagram: the server's own, altered, forged, or random."""
    how, transfer = script.number() % 8, script.number() % len(_sent())
    if how < 3:
        return script.choice(_datagrams(transfer))  # type: ignore[no-any-return]
    if how == 3:
        return _train(transfer)
    if how == 4:
        altered = bytearray(script.choice(_datagrams(transfer)))
        altered[script.number(2) % len(altered)] ^= script.number()
        return bytes(altered[: script.number(2) or None])
    genuine = _sent()[transfer].descriptor
    first = (genuine.first + script.number() - 128) & 0xFFFFFFFF
    if how == 5:  # forged with the right keys
        total = 1 + script.number(3) % BLOCK
        offset = 0 if total > BLOCK - 3 * PAGE else script.number() % 4 * PAGE
        forged = Descriptor(
            script.number() % 8, first, 5, 6 + script.number() % 8 // 7, offset, total
        )
        return _control(forged, script.choice([ANNOUNCEMENT, COMPLETION, REPAIRED]))
    if how == 6:
        length = script.choice([SEGMENT, 1, script.number(2), 1 + script.number()])
        content = script.piece(4).ljust(length, b"x")[:length]
        return SEGMENT_HEADER.pack(2, length, first) + content
    return script.piece(script.number(2) % 3000)


def _sent_packet(script: Script, tag: int) -> bytes:
    """Return a SENT about a transfer that may or may not exist."""
    genuine = _sent()[script.number() % len(_sent())].descriptor
    occasion = script.choice(list(Occasion))
    shift = script.number()
    first = (genuine.first + max(0, shift - 200)) & 0xFFFFFFFF
    length = genuine.total if shift < 200 else 1 + script.number(3) % BLOCK
    return Sent(tag, genuine.transfer, first, genuine.offset, length, occasion).encode()


class Host:
    """A client, the operations of its mount, and the server's end of its connection."""

    def __init__(self) -> None:
        self.client = Client()
        self.images: list[tuple[int, OpenImage]] = []
        self.reads: list[tuple[OpenImage, int, bytearray, Deferred[Any]]] = []
        self.wrong: list[Error] = []
        self.ended: list[int] = []
        self.requests: list[tuple[Type, int, int, bytes]] = []

    def say(self, packet: bytes) -> None:
        """Send a packet from the server, if the connection is open."""
        if not self.client.wire.ended:
            self.client.channel.dataReceived(packet)

    def receive(self) -> None:
        """Record what the client sent, which must be packets of the protocol."""
        for kind, offset, body in self.client.wire.packets():
            if kind == Type.READ:
                tag = Read.parse(offset, body).tag
            elif kind == Type.REPAIR:
                tag = Repair.parse(offset, body).tag
            elif kind == Type.CLOSE:
                tag = 0 * decode(Close, body).handle
            elif kind == Type.PULLED:
                tag = 0 * decode(Pulled, body).number
            else:
                assert kind < 128
                tag = parse_tagged(body)[0]
            self.requests.append((Type(kind), tag, offset, body))
        if self.client.wire.ended:
            self.reconnect()

    def tag(self, script: Script) -> int:
        """Return a tag, mostly that of a request."""
        number = script.number()
        return (
            self.requests[-1 - number % len(self.requests)][1]
            if number < 250 and self.requests
            else 9
        )

    def reconnect(self) -> None:
        """Lose the connection, and connect again."""
        self.client.lose()
        self.requests.clear()
        self.client.connect()
        self.client.wire.packets()
        self.greet()

    def greet(self) -> None:
        """Answer HELLO."""
        self.say(pack_tagged(Type.WELCOME, 0, WELCOME))
        self.say(Key(_KEYS.epoch.number, _KEYS.epoch.secret).encode())

    def keep(self, result: Deferred[Any]) -> Deferred[Any]:
        """Record failures other than C{OSError} and cancellation."""

        def failed(failure: Error) -> None:
            if not failure.check(OSError, CancelledError):
                self.wrong.append(failure)

        return result.addErrback(failed)

    def open(self) -> None:
        """Open the image, as the mount does."""
        found = self.client.remote.open(b"disk.img")
        self.keep(found.addCallback(self._opened))

    def _opened(self, found: tuple[int, object]) -> None:
        self.images.append((found[0], self.client.remote.opened(found[0])))

    def read(self, offset: int, length: int) -> None:
        """Read from the image opened last, as the mount does."""
        if self.images:
            image, target = self.images[-1][1], bytearray(length)
            view = memoryview(target)
            reader, cross = self.client.remote.reader, partial(self.client.clock.callLater, 0)
            if image.stale:
                return
            if reader.read_cached(image, offset, view, cross=cross) is None:
                reading = maybeDeferred(reader.read, image, offset, view)
                self.reads.append((image, offset, target, reading))
                number = len(self.reads) - 1
                self.keep(reading.addCallback(lambda _: self.ended.append(number)))

    def find(self, offset: int, data: bool) -> None:
        """Look for data or a hole in the image opened last, as the mount does."""
        if self.images:
            self.keep(self.client.remote.holes.find(self.images[-1][1], offset, data))

    def release(self) -> None:
        """Release the image opened last, as the mount does."""
        if self.images:
            self.client.remote.release(self.images.pop()[0])

    def act(self, script: Script) -> None:
        """Make any operation of the mount."""
        remote = self.client.remote
        match script.number() % 9:
            case 0:
                self.open()
            case 1 | 2 | 3:
                self.read(script.number() * 1000, script.choice([PAGE, 1, BLOCK, 5000]))
            case 4:
                self.release()
            case 5:
                asked: list[Callable[[bytes], Deferred[Any]]] = [
                    remote.getattr,
                    remote.readdir,
                    remote.readlink,
                ]
                self.keep(script.choice(asked)(b"disk.img"))
            case 6:
                self.keep(remote.statfs())
            case 7:
                if self.reads:
                    self.reads[script.number() % len(self.reads)][3].cancel()
            case 8:
                self.find(script.number() * 1000, script.number() % 2 == 0)

    def check(self) -> None:
        """Assert that memory is bounded, and that only expected failures occurred."""
        for failure in self.wrong:
            failure.raiseException()
        remote = self.client.remote
        reassembly = remote.receiver.reassembly
        assert len(self.client.channel._framer._buffer) <= HEADER.size + MAX_DATA
        assert len(reassembly._partial) <= 128
        assert len(reassembly._in_order) == len(reassembly._transfers) <= 2048
        assert self.client.cache.held <= 4 * BLOCK
        assert len(remote.reads.in_flight.requests) <= 4096
        assert len(remote.server_pulls._running) <= MAX_SERVER_PULLS
        assert len(remote.reader.fillers) <= len(self.client.pulls._running) <= MAX_PULLS


def _client(data: bytes) -> None:
    """
    Whatever a server sends over TCP and by multicast, operations end with a result or an
    C{OSError}, the client sends only packets, the next connection works, and the cache has no
    incomplete page.
    """
    script = Script(data)
    with clean_log():
        host = Host()
        if script.number() % 8:
            host.greet()
        if script.number() % 8:
            host.open()
            host.receive()
            host.say(pack_tagged(Type.REPLY, host.tag(script), encode(opened(1, _IMAGE, _KEY))))
        while script:
            match script.number() % 12:
                case 0 | 1 | 2:
                    host.act(script)
                case 3:
                    host.client.clock.advance(script.number() / 50)
                case 4:
                    receive(host.client.remote.receiver, host.client.clock, _datagram(script))
                case 5:
                    host.reconnect()
                case how:
                    packet, at = _from_server(how, script, host), script.number()
                    for piece in (packet[:at], packet[at:]):
                        host.say(piece)
            host.receive()
            host.check()
        host.reconnect()
        assert host.client.remote.is_connected
        host.client.clock.advance(1)
        host.check()
        _check_cache(host)
        _end(host)


def _from_server(how: int, script: Script, host: Host) -> bytes:
    """Return a packet of a server that knows the protocol but violates it."""
    tag = host.tag(script)
    match how:
        case 6:
            return _sent_packet(script, tag)
        case 7:
            offset = script.number() % 40 * PAGE
            end = offset + script.choice([PAGE, 3 * PAGE, BLOCK - offset % BLOCK, 1, 5000])
            content = _CONTENT[offset : min(end, offset + MAX_DATA - 25)]
            return Data(5, 6 + script.number() % 8 // 7, offset, content).encode()
        case 8 | 9:
            return pack_tagged(script.choice(_ANSWERS), tag, encode(script.choice(_VALUES)))
        case 10:
            packets = script.choice([Gone(tag, 1).encode(), pack_tagged(Type.SEGMENTS, tag, b"")])
            return (
                packets
                if script.number() % 2
                else pack_tagged(Type.SEGMENTS, tag, _datagram(script)[: MAX_DATA - 4])
            )
        case 11 if (which := script.number() % 4) > 0:
            if which == 2:
                path = script.choice([b"disk.img", b"", b"other"])
                return pack(Type.PULL, encode(Pull(script.number() % 20, path)))
            return Key(script.number() % 3, bytes(32)).encode()
    raw: bytes = script.choice(
        [
            pack(script.number(), script.piece(script.number()), script.number(4)),
            script.piece(script.number()),
        ]
    )
    return raw


def _end(host: Host) -> None:
    """Stop the client: cancel all reads, as the bridge does, and check that none is held."""
    for *_, reading in host.reads:
        reading.cancel()
    remote = host.client.remote
    in_flight = remote.reads.in_flight
    assert not in_flight.waiting
    host.client.lose()
    host.client.clock.advance(30)
    assert not in_flight.requests and not in_flight.requested and not remote.reader.fillers


def _group(data: bytes) -> None:
    """
    Whatever is sent to the group, and whatever SENT says, each read ends with the right bytes
    within seconds as long as the server answers requests over TCP, and the cache has no wrong
    bytes.
    """
    script = Script(data)
    with clean_log():
        host = Host()
        host.greet()
        host.open()
        host.receive()
        _answer_opens(host)
        receiver, clock = host.client.remote.receiver, host.client.clock
        while script:
            match script.number() % 8:
                case 0 | 1 | 2:
                    receive(receiver, clock, _datagram(script))
                case 3:
                    host.read(script.number() * 600, script.choice([PAGE, 1, BLOCK, 5000]))
                case 4:
                    host.client.clock.advance(script.number() / 200)
                case 5:
                    host.say(_sent_packet(script, host.tag(script)))
                case 6:
                    packets = _datagram(script)[: MAX_DATA - 4]
                    host.say(pack_tagged(Type.SEGMENTS, host.tag(script), packets))
                case 7:
                    datagrams = [_datagram(script) for _ in range(script.number() % 200)]
                    receive(receiver, clock, *datagrams)
            host.receive()
            _answer_opens(host)
            host.check()
        host.read(0, len(_CONTENT))
        for _ in range(12):
            host.receive()
            _answer_opens(host)
            requests, host.requests = host.requests, []
            for kind, tag, offset, body in requests:
                if kind == Type.PING:
                    host.say(pack_tagged(Type.PONG, tag, b""))
                elif kind == Type.READ and Read.parse(offset, body).over_tcp:
                    _answer(host, Read.parse(offset, body))
            host.client.clock.advance(0.5)
        host.check()
        assert len(host.ended) == len(host.reads), "a read did not end"
        for image, offset, target, _ in host.reads:
            expected = _CONTENT[offset : offset + len(target)]
            assert target[: len(expected)] == expected, "a read of wrong bytes"
            assert image.key == (5, 6)
        _check_cache(host)
        _end(host)


def _answer_opens(host: Host) -> None:
    """Answer each OPEN as an honest server does."""
    for kind, tag, *_ in host.requests[:]:
        if kind == Type.OPEN:
            host.say(pack_tagged(Type.REPLY, tag, encode(opened(1, _IMAGE, _KEY))))
    host.requests = [each for each in host.requests if each[0] != Type.OPEN]


def _answer(host: Host, read: Read) -> None:
    """Answer a READ over TCP as an honest server does."""
    offset, end = read.offset, read.offset + read.length
    while offset < end:
        stop = min(end, offset + BLOCK // 2, (offset // BLOCK + 1) * BLOCK)
        host.say(Data(5, 6, offset, _CONTENT[offset:stop]).encode())
        offset = stop


def _check_cache(host: Host) -> None:
    """Assert that all pages in the cache are those of the image."""
    cache = host.client.cache
    for (key, block), held in list(cache._blocks.items()):
        assert key[0] == 5
        for page in range(32):
            offset = block * BLOCK + page * PAGE
            expected = _CONTENT[offset : offset + PAGE]
            if held.pages >> page & 1:
                target = bytearray(len(expected))
                assert expected and cache.read(key, offset, memoryview(target))
                assert target == expected, f"wrong bytes at {offset} in the cache"


@cache
def _tree() -> tuple[ExportedDirectory, set[int]]:
    """Return an exported directory, and the inodes in it; the directory beside it is secret."""
    top = tempfile.mkdtemp(prefix="mufs-fuzz-")
    atexit.register(shutil.rmtree, top, True)
    root = os.path.join(top, "root")
    os.makedirs(os.path.join(root, "sub", "sub"))
    for path in ("secret", "root/file", "root/sub/file", "root/sub/sub/\udcff"):
        with open(os.path.join(top, path), "wb") as file:
            file.write(path.encode(errors="surrogateescape"))
    os.symlink("..", os.path.join(root, "up"))
    os.symlink("/", os.path.join(root, "top"))
    os.symlink("file", os.path.join(root, "link"))
    os.mkfifo(os.path.join(root, "fifo"))
    below = [root, *(os.path.join(at, n) for at, d, f in os.walk(root) for n in d + f)]
    return ExportedDirectory(root), {os.lstat(path).st_ino for path in below}


def _paths(data: bytes) -> None:
    """Any path raises C{OSError}, or names something beneath the root."""
    library, inside = _tree()
    with suppress(OSError):
        assert library.getattr(data).ino in inside
    with suppress(OSError):
        image = library.open(data)
        assert image.attributes.ino in inside
        assert bytes(image.read(0, 100)).startswith(b"root/")
    with suppress(OSError):
        assert {found.ino for _, found in library.readdir(data)} < inside
    with suppress(OSError):
        assert library.readlink(data) in (b"..", b"/", b"file")


def _framer_seeds() -> list[bytes]:
    packets = [pack_tagged(kind, 7, b"data") for kind in Type]
    return [
        b"\0" + b"".join(packets),
        b"\2\0\5\0\x20" + b"".join(packets[:3]),
        b"\0" + HEADER.pack(1, 0, MAX_DATA + 1),
        b"\1\0\3" + HEADER.pack(1, 0, MAX_DATA),
    ]


def _struct_seeds() -> list[bytes]:
    values: list[Any] = [
        Read(1, 2, 1 << 33, BLOCK, Priority.AHEAD),
        Sent(1, 2, 3, 1 << 33, BLOCK),
        Data(1, 2, 1 << 33, b"bytes"),
        Repair(1, 2, 1, 0x80F),
        Gone(1, 2),
        Key(1, bytes(32)),
    ]
    return [
        bytes([number]) + value.encode()[1:5] + value.encode()[HEADER.size :]
        for number, value in enumerate(values)
    ]


def _metadata_seeds() -> list[bytes]:
    report = Report(9, 5, 20, 700, True, "working")
    pulled = Pulled(1, 2, 3, False)
    values = [
        metadata.Hello(1, "host"),
        At(b"a/b"),
        Close(1),
        MapRequest(1, 2),
        report,
        Pull(1, b"a"),
        pulled,
    ]
    values += _VALUES
    return [
        bytes([_MAPS.index(type(value))]) + encode(value)
        for value in values
        if type(value) in _MAPS
    ]


def _segment_seeds() -> list[bytes]:
    size = (SEGMENT - 64).to_bytes(2, "big")
    small = Descriptor(1, 0xFFFFFFFF, 5, 6, PAGE, 300)
    rows = cut(small.first, bytes(300), 64)
    trained = b"".join([small.encode(1, 64), *packets_of(rows), small.encode(3, 64)])
    return [size + _train(1), b"\0\0" + trained, size + _train(3)[:9000]]


def _transfer_seeds() -> list[bytes]:
    return [
        (size - 64).to_bytes(2, "big")
        + length.to_bytes(2, "big")
        + bytes([128, 1, 0, 0, 20])
        + bytes(parts)
        for size, length, parts in [
            (64, 299, range(5)),
            (64, 299, [255, 5, 6, 7, 8, 9]),
            (64, 299, [0, 2, 4, 255, 6, 7]),
            (1400, 8191, [255, 5, 4, 3, 254, 1, 0]),
            (64, 639, [11, 10, 9, 8, 7, 6, 5, 4, 3, 12]),
        ]
    ]


def _packing_seeds() -> list[bytes]:
    content = bytes(PAGE) + b"text " * (PAGE // 5) + bytes(2 * PAGE)
    seeds = []
    for compressor in (None, _COMPRESSOR):
        encoding, packed = pack_pages(content, zero_pages(content), compressor)
        seeds.append(bytes([encoding - 1]) + (len(content) - 1).to_bytes(3, "big") + packed)
    return seeds


def _machine_seeds() -> list[bytes]:
    random = Random(2)
    return [bytes([1, 1]) + random.randbytes(1 << size) for size in range(3, 9)] * 2


def _group_seeds() -> list[bytes]:
    """Transfers in datagrams, with one of them altered, or too long."""
    datagrams = [bytes([0, 0, 0, index]) for index in range(9)]
    changed = [bytes([0, 4, 0, index, 0, 100, 1, 0, 0]) for index in range(9)]
    too_long = bytes([0, 6, 0, 130, 0, 0, 0, 0, 1, 2, 3, 4])
    return [
        *_machine_seeds(),
        b"".join([datagrams[0], changed[1], *datagrams[2:4], datagrams[8]]),
        b"".join([datagrams[0], datagrams[1], changed[4], datagrams[5], datagrams[8]]),
        b"".join([changed[0], *datagrams[1:4], datagrams[8]]),
        b"".join([*datagrams[1:4], changed[8], datagrams[0]]),
        b"".join([datagrams[0], datagrams[1], too_long, datagrams[2], datagrams[3], datagrams[8]]),
        b"".join([b"\3\0\0", *datagrams[:4], datagrams[8], b"\5\0\0\0\0\0\4\20"]),
        b"\3\0\2" + bytes([5, 0, 2, 0, 0, 0, 0, 4, 20, 1, 3, 2, 4, 100]),
    ]


def _client_seeds() -> list[bytes]:
    """Reads answered by DATA with whole pages, a part of a page, or a wrong end."""
    read = bytes([1, 1, 0, 2, 1, 0, 2])
    answers = [bytes([7, 0, offset, how, 0, 255]) for offset in (0, 32) for how in range(5)]
    attributes, opening, second = (
        bytes(each) for each in ([8, 0, 0, 0, 255], [8, 0, 0, 6, 255], [3, 50])
    )
    pull = bytes([1, 1, 0, 11, 0, 2, 0, 1, 255]) + attributes + opening + second
    pages = [bytes([7, 0, page, 0, 0, 255]) for page in range(36)]
    pulls = [pull, pull + b"".join(pages[:9]), pull + b"".join(pages) + second]
    return [*_machine_seeds(), *(read + answer for answer in answers), *pulls]


def _server_seeds() -> list[bytes]:
    opening = bytes([5, 0, 0, 1, 0, 20])
    read = bytes([5, 2, 0, 0, 3, 1, 1, 200, 0, 9])
    repair = bytes([5, 4, 3, 1, 1, 2, 0xFF, 3, 7, 0, 255])
    ping = bytes([5, 7, 9, 2, *b"ok", 5, 0, 0, 0, 1, 3, 255])
    return [
        *_machine_seeds(),
        b"\1\1" + opening + read + ping + repair,
        b"\1\1\x0e\5\x08\1\1\0\1\0\2\xff\xff\x0f",
        b"\0\1" + opening * 3 + b"\1" + read + b"\0\x10" + repair + b"\4" + opening,
    ]


def _path_seeds() -> list[bytes]:
    return [
        b"",
        b"file",
        b"sub/file",
        b"sub/sub/\xff",
        b"up/secret",
        b"../secret",
        b"top/etc",
        b"link",
        b"fifo",
        b"sub/../file",
        b"file\0",
        b"n" * 256,
        b"sub/" * 2000,
    ]


TARGETS = {
    "framer": Target(_framer, _framer_seeds),
    "structs": Target(_structs, _struct_seeds),
    "metadata": Target(_metadata, _metadata_seeds),
    "segments": Target(_segments, _segment_seeds),
    "transfer": Target(_transfer, _transfer_seeds),
    "packing": Target(_packing, _packing_seeds),
    "paths": Target(_paths, _path_seeds),
    "server": Target(_server, _server_seeds),
    "client": Target(_client, _client_seeds),
    "group": Target(_group, _group_seeds),
}
