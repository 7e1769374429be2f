"""What travels encoded in the data of TCP packets."""

import errno
import tracemalloc
from typing import Any

import msgspec
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.properties import U32, U64, examples
from mufs.wire.channel import MAX_DATA, ProtocolError
from mufs.wire.metadata import (
    MAX_RUNS,
    At,
    Attributes,
    Caller,
    Close,
    DataMap,
    Failure,
    Hello,
    Link,
    MapRequest,
    Names,
    Opened,
    Report,
    Statistics,
    Welcome,
    decode,
    encode,
)

TIMES = st.integers(-(1 << 63), (1 << 64) - 1)
TEXT = st.text(st.characters(exclude_categories=["Cc", "Zl", "Zp", "Cs"]), max_size=255)
PATH = st.binary(max_size=300)
TARGET = st.binary(min_size=1, max_size=300).map(lambda target: target.replace(b"\0", b"0"))
NAME = TARGET.map(lambda name: name[:255].replace(b"/", b"+")).filter(
    lambda name: name not in (b".", b"..")
)
SIZE = st.integers(0, (1 << 63) - 1)
PORT = st.integers(0, 65535)
ATTRIBUTES = st.builds(
    Attributes, U32, U64, U64, U32, U32, U64, SIZE, U64, TIMES, TIMES, TIMES, U64
)
NAMES = st.lists(st.tuples(NAME, ATTRIBUTES), max_size=3)
KEY = st.binary(min_size=16, max_size=16)
MAPS = st.lists(SIZE, unique=True, min_size=2, max_size=9).map(
    lambda bounds: DataMap(min(bounds), max(bounds), tuple(sorted(bounds)[len(bounds) % 2 :]))
)
CALLER = st.builds(Caller, U32, U32, st.lists(U32, max_size=5))
VALUES: "dict[Any, st.SearchStrategy[Any]]" = {
    Hello: st.builds(Hello, st.integers(-5, 5), TEXT),
    Welcome: st.builds(
        Welcome, st.integers(), TEXT, PORT, st.tuples(TEXT, PORT), st.integers(64, 1400)
    ).filter(lambda welcome: -(1 << 63) <= welcome.version < 1 << 64),
    Attributes: ATTRIBUTES,
    At: st.builds(At, PATH, CALLER),
    Link: st.builds(Link, TARGET),
    Names: st.builds(Names, NAMES),
    Opened: st.builds(Opened, U32, U64, U64, KEY, ATTRIBUTES),
    DataMap: MAPS,
    MapRequest: st.builds(MapRequest, U32, SIZE),
    Close: st.builds(Close, U32),
    Statistics: st.builds(Statistics, *[U64] * 9),
    Report: st.tuples(U64, U64).flatmap(
        lambda counts: st.builds(
            Report, st.just(max(counts)), st.just(min(counts)), U32, U64, st.booleans(), TEXT
        )
    ),
    Failure: st.builds(Failure, TEXT, TEXT),
}
OPTIONAL = ((Failure, "text"), (At, "caller"), (Hello, "max_transfer"), (Opened, "data"))
ATTRIBUTES_OF_A_FILE = Attributes(0o100644, 2, 1, 0, 0, 0, 5, 8, 1, -1, 1 << 32, 9)

VECTORS: list[tuple[Any, bytes]] = [
    (
        Hello(1, "host", 1 << 20),
        b"\x83\xa7version\x01\xa4name\xa4host\xacmax_transfer\xce\x00\x10\x00\x00",
    ),
    (
        Welcome(1, "239.5.5.0", 7041, ("10.0.0.1", 40000), 1400),
        b"\x85\xa7version\x01\xa5group\xa9239.5.5.0\xa4port\xcd\x1b\x81"
        b"\xa6source\x92\xa810.0.0.1\xcd\x9c\x40\xa7segment\xcd\x05\x78",
    ),
    (
        At(b"dir/\xff", Caller(5, 1 << 31, [7])),
        b"\x82\xa4path\xc4\x05dir/\xff\xa6caller\x83\xa3uid\x05\xa3gid\xce\x80\x00\x00\x00"
        b"\xa6groups\x91\x07",
    ),
    (Link(b"x"), b"\x81\xa6target\xc4\x01x"),
    (
        Names([(b"a", ATTRIBUTES_OF_A_FILE)]),
        b"\x81\xa7entries\x91\x92\xc4\x01a\x8c\xa4mode\xcd\x81\xa4\xa3ino\x02\xa5nlink\x01"
        b"\xa3uid\x00\xa3gid\x00\xa4rdev\x00\xa4size\x05\xa6blocks\x08\xa5atime\x01"
        b"\xa5mtime\xff\xa5ctime\xcf\x00\x00\x00\x01\x00\x00\x00\x00"
        b"\xaageneration\x09",
    ),
    (Close(7), b"\x81\xa6handle\x07"),
    (
        Report(300, 2, 1, 700, True, "working"),
        b"\x86\xa5reads\xcd\x01\x2c\xa4hits\x02\xa3lag\x01\xa9delivered\xcd\x02\xbc"
        b"\xa5works\xc3\xa9multicast\xa7working",
    ),
    (Failure("ENOENT", "no"), b"\x82\xa5errno\xa6ENOENT\xa4text\xa2no"),
]


class MetadataTests(SynchronousTestCase):
    """Values as bytes, and back."""

    def test_vectors(self) -> None:
        """Values are MessagePack maps of their fields, in any order; names and paths are binary."""
        for value, data in VECTORS:
            fields = msgspec.msgpack.decode(data)
            self.assertEqual(msgspec.msgpack.decode(encode(value)), fields)
            self.assertEqual(len(encode(value)), len(data))
            self.assertEqual(decode(type(value), data), value)

    @examples(150)
    @given(st.one_of(*VALUES.values()))
    def test_round_trip(self, value: Any) -> None:
        """Every value within the bounds comes back as it was."""
        self.assertEqual(decode(type(value), encode(value)), value)

    @examples(200)
    @given(
        st.sampled_from(list(VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), VALUES[kind])),
        st.data(),
    )
    def test_wrong_field(self, case: tuple[Any, Any], data: st.DataObject) -> None:
        """A field that is lacking, or of another type, is a protocol error."""
        kind, value = case
        fields = msgspec.msgpack.decode(encode(value))
        name = data.draw(st.sampled_from(sorted(fields)))
        right = fields.pop(name)
        if (kind, name) not in OPTIONAL:
            self.assertRaises(ProtocolError, decode, kind, msgspec.msgpack.encode(fields))
        others: list[Any] = [None, True, 1.5, -1, "text", b"bytes", [], [1], {}, 1 << 63]
        wrong = [other for other in others if type(other) is not type(right)]
        fields[name] = data.draw(st.sampled_from(wrong))
        self.assertRaises(ProtocolError, decode, kind, msgspec.msgpack.encode(fields))

    def test_nobody(self) -> None:
        """Who does not say on whose behalf he asks does so for nobody."""
        self.assertEqual(decode(At, b"\x81\xa4path\xc4\x01x"), At(b"x", Caller(65534, 65534, [])))

    def test_bounds(self) -> None:
        """A value beyond the bounds of its field is a protocol error."""
        opened = Opened(1, 2, 3, bytes(16), ATTRIBUTES_OF_A_FILE)
        welcome = VECTORS[1][0]
        report = Report(3, 2, 1, 700, True, "working")
        wrong: list[Any] = [
            Hello(1, "n" * 256),
            evolve(welcome, group="n" * 256),
            *(evolve(welcome, port=port) for port in (-1, 65536)),
            *(evolve(welcome, source=("a", port)) for port in (-1, 65536)),
            *(evolve(welcome, segment=size) for size in (0, 63, 1401)),
            evolve(welcome, source=("a", 1, 2)),
            At(bytes(65537)),
            *(At(b"", Caller(uid, 0, [])) for uid in (-1, 1 << 32)),
            *(At(b"", Caller(0, 0, groups)) for groups in ([-1], [1 << 32], [1] * 257)),
            *(Link(target) for target in (b"", b"x" * 4096)),
            *(Names([(name, ATTRIBUTES_OF_A_FILE)]) for name in (b"", b"n" * 1025)),
            *(evolve(ATTRIBUTES_OF_A_FILE, mode=mode) for mode in (-1, 1 << 32)),
            *(evolve(ATTRIBUTES_OF_A_FILE, size=size) for size in (-1, 1 << 63)),
            *(evolve(opened, handle=handle) for handle in (-1, 1 << 32)),
            *(evolve(opened, key=bytes(size)) for size in (0, 15, 17, 32)),
            evolve(opened, attributes=evolve(ATTRIBUTES_OF_A_FILE, uid=-1)),
            Close(-1),
            Statistics(*[-1] * 9),
            Failure("E" * 256),
            *(Failure("EIO", text) for text in ("a\nb", "end\n", "\x1b[2J", "\x9b", "\u2028")),
            *(evolve(report, lag=lag) for lag in (-1, 1 << 32)),
            evolve(report, multicast="n" * 256),
        ]
        for value in wrong:
            self.assertRaises(ProtocolError, decode, type(value), encode(value))
        fields = msgspec.msgpack.decode(encode(report))
        more = msgspec.msgpack.encode({**fields, "hits": report.reads + 1})
        self.assertRaises(ProtocolError, decode, Report, more)

    def test_maps(self) -> None:
        """The runs of a map are in their order, apart, and within it; OPEN has the first part."""
        right = DataMap(10, 100, (10, 20, 30, 100))
        size = evolve(ATTRIBUTES_OF_A_FILE, size=100)
        self.assertEqual(decode(DataMap, encode(right)), right)
        wrong = [
            (10, (10,)), (10, (20, 10)), (10, (10, 10)), (10, (10, 20, 20, 30)), (10, (9, 20)),
            (10, (10, 101)), (10, (30, 40, 10, 20)), (101, ()), (10, (-1, 20)), (10, (10, 1 << 64)),
            (0, tuple(range(2 * MAX_RUNS + 2))),
        ]  # fmt: skip
        for start, bounds in wrong:
            fields = {"start": start, "end": 100, "bounds": [each % (1 << 64) for each in bounds]}
            data = msgspec.msgpack.encode(fields)
            self.assertRaises(ProtocolError, decode, DataMap, data)
        most = tuple(range(2 * MAX_RUNS))
        opened = Opened(1, 2, 3, bytes(16), evolve(size, size=1 << 40), DataMap(0, 1 << 40, most))
        self.assertLess(len(encode(opened)), MAX_DATA)
        fields = msgspec.msgpack.decode(encode(evolve(opened, data=DataMap(0, 100, (0, 100)))))
        self.assertEqual(decode(Opened, msgspec.msgpack.encode(fields)).data.end, 100)
        for end, start in ((101, 0), (100, 1)):
            other = {"start": start, "end": end, "bounds": []}
            smaller = {**fields["attributes"], "size": 100}
            data = msgspec.msgpack.encode({**fields, "attributes": smaller, "data": other})
            self.assertRaises(ProtocolError, decode, Opened, data)

    def test_names(self) -> None:
        """What cannot be a name in a directory, or a link's target, is neither."""
        for name in (b".", b"..", b"a/b", b"/", b"a\0b", b"\0", b"/etc/passwd", b"../x"):
            entries = [(b"right", ATTRIBUTES_OF_A_FILE), (name, ATTRIBUTES_OF_A_FILE)]
            data = msgspec.msgpack.encode({"entries": entries})
            self.assertRaises(ProtocolError, decode, Names, data)
            self.assertRaises(ValueError, Names, entries)
        data = msgspec.msgpack.encode({"target": b"a\0b"})
        self.assertRaises(ProtocolError, decode, Link, data)

    @examples(300)
    @given(
        st.sampled_from(list(VALUES)),
        st.one_of(
            st.binary(max_size=60),
            st.recursive(
                st.one_of(st.none(), st.booleans(), U64, st.floats(), TEXT, PATH),
                lambda inner: st.one_of(
                    st.lists(inner, max_size=3),
                    st.dictionaries(st.text(max_size=8), inner, max_size=3),
                ),
                max_leaves=6,
            ).map(msgspec.msgpack.encode),
        ),
    )
    def test_garbage(self, kind: Any, data: bytes) -> None:
        """Any bytes, and any other MessagePack, are a protocol error or a proper value."""
        try:
            value = decode(kind, data)
        except ProtocolError:
            return
        self.assertIsInstance(value, kind)
        self.assertEqual(decode(kind, encode(value)), value)

    def test_cut(self) -> None:
        """A value that is cut anywhere, or has bytes behind it, is a protocol error."""
        for value, data in VECTORS:
            for end in range(len(data)):
                self.assertRaises(ProtocolError, decode, type(value), data[:end])
            self.assertRaises(ProtocolError, decode, type(value), data + b"\xc0")

    def test_lengths(self) -> None:
        """Lengths told in the data make nobody allocate memory, nor nesting exhaust the stack."""
        self.addCleanup(tracemalloc.stop)
        tracemalloc.start()
        for kind, data in [
            (Names, b"\x81\xa7entries\xdd\x0f\xff\xff\xff"),
            (Names, b"\x81\xa7entries\x91\x92\xc6\x7f\xff\xff\xff"),
            (At, b"\x81\xa4path\xc6\x7f\xff\xff\xff"),
            (Hello, b"\xdf\xff\xff\xff\xff"),
            (Hello, b"\x82\xa4name\xdb\x7f\xff\xff\xff"),
            (Hello, b"\x81\xa5other\xdd\xff\xff\xff\xff"),
            (Hello, b"\x81\xa5other" + b"\x91" * 100_000),
        ]:
            self.assertRaises(ProtocolError, decode, kind, data)
        self.assertLess(tracemalloc.get_traced_memory()[1], 400_000)


class FailureTests(SynchronousTestCase):
    """Errors on their way to the other side."""

    def test_by_name(self) -> None:
        """An error travels by the name of its errno, and is the same number there."""
        for number in (errno.ENOENT, errno.ESTALE, errno.EACCES, errno.ENAMETOOLONG):
            failure = Failure.of(OSError(number, "why"))
            self.assertEqual(failure, Failure(errno.errorcode[number], "why"))
            self.assertEqual(failure.error().errno, number)
            self.assertEqual(failure.error().strerror, "why")

    def test_without_number(self) -> None:
        """An error without an errno, or with one that is not known here, is EIO."""
        self.assertEqual(Failure.of(OSError("broken")), Failure("EIO", "broken"))
        self.assertEqual(Failure.of(OSError(99999, "odd")), Failure("EIO", "odd"))
        for name in ("", "ENOSUCHTHING", "errorcode", "__name__", "0"):
            self.assertEqual(Failure(name).error().errno, errno.EIO)

    def test_no_paths(self) -> None:
        """The paths of the server stay there."""
        failure = Failure.of(FileNotFoundError(errno.ENOENT, "No such file", "/srv/secret"))
        self.assertNotIn("secret", failure.text)

    def test_long_text(self) -> None:
        """A text too long for the packet is cut, not refused."""
        failure = Failure.of(OSError(errno.EIO, "\N{SNOWMAN}" * 1000))
        self.assertEqual(decode(Failure, encode(failure)), failure)
