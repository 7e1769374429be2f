"""The worked example of docs/protocol.md: its bytes are those that the code makes."""

import errno
from pathlib import Path

from attrs import evolve
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import mufs
from mufs.wire.channel import (
    Data,
    Gone,
    Key,
    Occasion,
    Priority,
    Read,
    Repair,
    Sent,
    Type,
    pack,
    pack_tagged,
)
from mufs.wire.metadata import (
    VERSION,
    At,
    Attributes,
    Caller,
    Close,
    DataMap,
    Failure,
    Hello,
    MapRequest,
    Opened,
    Pull,
    Pulled,
    Report,
    Welcome,
    encode,
)
from mufs.wire.sealing import Epoch, derive_key, seal, unseal
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    REPAIRED,
    Descriptor,
    cut,
    cut_parity,
    parse,
)

SECRET = bytes(range(32))
CONTENT = bytes(range(150))
IMAGE, GENERATION = 0x0102030405060708, 0x1112131415161718
SEGMENT = 64
KEY = derive_key(SECRET, IMAGE, GENERATION)
EPOCH = Epoch(0, bytes(range(32, 64)))
ATTRIBUTES = Attributes(
    mode=0o100644, ino=12, nlink=1, uid=0, gid=0, rdev=0, size=150, blocks=8, atime=0,
    mtime=1_700_000_000_000_000_000, ctime=1_700_000_000_000_000_000,
    generation=GENERATION,
)  # fmt: skip
BARE = Descriptor(7, 0xFFFFFFFF, IMAGE, GENERATION, 0, len(CONTENT))
SEALED, TAG = seal(EPOCH.cipher(KEY), BARE, CONTENT)
DESCRIPTOR = evolve(BARE, tag=TAG)


def segment(index: int) -> bytes:
    """A segment of the transfer as it goes out."""
    (packet,) = map(bytes, cut(DESCRIPTOR.first, SEALED, SEGMENT, chosen=1 << index))
    return packet


def parity_segment(index: int) -> bytes:
    """A parity segment of the transfer as it goes out."""
    return cut_parity(DESCRIPTOR.first, SEALED, index, 1, SEGMENT).tobytes()


def channel_packets() -> dict[str, bytes]:
    """Those of the request channel, by their names in the document."""
    welcome = Welcome(VERSION, "239.5.5.0", 7041, ("192.0.2.1", 40000), SEGMENT)
    opened = Opened(1, IMAGE, GENERATION, KEY, ATTRIBUTES, DataMap(0, 150, (0, 150)))
    sent = Sent(2, 7, 0xFFFFFFFF, 0, 150)
    failure = Failure.of(OSError(errno.EINVAL, "read past the end of the image"))
    return {
        "HELLO": pack_tagged(Type.HELLO, 0, encode(Hello(VERSION, "host1"))),
        "WELCOME": pack_tagged(Type.WELCOME, 0, encode(welcome)),
        "KEY": Key(EPOCH.number, EPOCH.secret).encode(),
        "OPEN": pack_tagged(Type.OPEN, 1, encode(At(b"disk.img", Caller(1000, 1000, [1000, 24])))),
        "REPLY": pack_tagged(Type.REPLY, 1, encode(opened)),
        "MAP": pack_tagged(Type.MAP, 6, encode(MapRequest(1, 100))),
        "REPLY to MAP": pack_tagged(Type.REPLY, 6, encode(DataMap(100, 150, (100, 150)))),
        "READ": Read(2, 1, 0, 150, Priority.BLOCKED).encode(),
        "SENT, now": sent.encode(),
        "REPAIR, attempt 1": Repair(2, 7, 1, 0b010).encode(),
        "SENT, repair": evolve(sent, occasion=Occasion.REPAIR).encode(),
        "REPAIR, attempt 2": Repair(2, 7, 2, 0b010).encode(),
        "SEGMENTS": pack_tagged(Type.SEGMENTS, 2, segment(1)),
        "SENT, TCP": evolve(sent, occasion=Occasion.TCP).encode(),
        "GONE": Gone(2, 7).encode(),
        "READ, over TCP": Read(3, 1, 0, 150, Priority.BLOCKED, over_tcp=True).encode(),
        "DATA": Data(IMAGE, GENERATION, 0, CONTENT).encode(),
        "READ, high offset": Read(4, 1, 5 << 32 | 0x1000, 4096, Priority.AHEAD).encode(),
        "ERROR": pack_tagged(Type.ERROR, 4, encode(failure)),
        "CLOSE": pack(Type.CLOSE, encode(Close(1))),
        "PING": pack_tagged(Type.PING, 5, encode(Report(1000, 900, 20, 70000, True, "working"))),
        "PONG": pack_tagged(Type.PONG, 5, b""),
        "PULL": pack(Type.PULL, encode(Pull(1, b"disk.img"))),
        "PULLED": pack(Type.PULLED, encode(Pulled(1, 150, 150, True))),
    }


def group_packets() -> dict[str, bytes]:
    """Those of the multicast group."""
    return {
        "announcement": DESCRIPTOR.encode(ANNOUNCEMENT, SEGMENT, EPOCH.control),
        "segment 4294967295": segment(0),
        "segment 0": segment(1),
        "segment 1": segment(2),
        "parity segment 2": parity_segment(0),
        "parity segment 3": parity_segment(1),
        "completion": DESCRIPTOR.encode(COMPLETION, SEGMENT, EPOCH.control),
        "completion of the repair": DESCRIPTOR.encode(REPAIRED, SEGMENT, EPOCH.control),
    }


def values() -> dict[str, bytes]:
    """What the sealing uses."""
    return {
        "key of the generation": KEY,
        "key of the transfer": EPOCH.transfer_key(KEY),
        "key of the control packets": EPOCH.control,
        "nonce": DESCRIPTOR.transfer.to_bytes(12, "big"),
        "associated data": DESCRIPTOR.bound(),
    }


def rows(data: bytes) -> list[str]:
    return [data[at : at + 32].hex(" ", -4) for at in range(0, len(data), 32)]


def example() -> list[str]:
    """All of it as the document shows it: headers stand on a line of their own."""
    shown = []
    for name, packet in channel_packets().items():
        head = f"{packet[:1].hex()} {packet[1:9].hex(' ', -4)}"
        shown.append((name, packet, [head, *rows(packet[9:])]))
    for name, packet in group_packets().items():
        shown.append((name, packet, [packet[:12].hex(" ", -4), *rows(packet[12:])]))
    for name, value in values().items():
        shown.append((name, value, rows(value)))
    return [
        "\n    ".join([f"{name}, {len(value)} bytes:\n", *lines]) for name, value, lines in shown
    ]


class ProtocolDocumentTests(SynchronousTestCase):
    """docs/protocol.md."""

    def test_example(self) -> None:
        """Every packet of the worked example stands in the document, byte for byte."""
        document = Path(mufs.__file__).parent.parent / "docs" / "protocol.md"
        if not document.exists():
            raise SkipTest("needs the checkout")
        text = document.read_text(encoding="utf-8")
        for packet in example():
            self.assertIn(packet, text)

    def test_received(self) -> None:
        """The segments of the example, in one train, open to the content of the image."""
        received = parse(segment(0) + segment(1) + segment(2), SEGMENT)
        sealed = b"".join(packet[2].tobytes() for packet in received if len(packet) == 3)
        self.assertEqual(unseal(EPOCH.cipher(KEY), DESCRIPTOR, sealed + TAG), CONTENT)


if __name__ == "__main__":
    print("\n\n".join(example()))
