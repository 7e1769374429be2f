"""
A host that captures the network's traffic, or sends packets with the server's address::

    python -m mufs.test.support.spoofer capture FILE
    python -m mufs.test.support.spoofer (replay | control | noise | spoil)... [PACKETS_PER_SECOND]

C{capture} writes every frame to a file, each preceded by its length. The others report every
second how many frames they have sent, and end after a minute. They learn the server's addresses
and ports from its packets. It needs root.
"""

import random
import socket
import struct
import sys
import time
from collections import deque

from attrs import evolve

from mufs.wire.pages import BLOCK
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    CONTROL_SIZE,
    HEADER,
    MAC_SIZE,
    REPAIRED,
    SEGMENT,
    TRANSMISSION,
    Descriptor,
    MalformedSegment,
    parse,
)

PORT = 7041
LENGTH = struct.Struct("!I")
HEADERS = 14 + 20 + 8
"""Bytes of the Ethernet, IP (without options) and UDP headers."""

MAX_RECORDED = 20_000
"""Datagrams kept for replay."""

RUN_SECONDS = 60.0


def capture(path: str) -> None:
    """Write all received frames to a file until the process is killed."""
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    listener.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    with open(path, "wb", buffering=0) as file:
        print("listening", flush=True)
        while True:
            frame = listener.recv(1 << 17)
            file.write(LENGTH.pack(len(frame)) + frame)


def payloads(path: str, protocol: int) -> list[bytes]:
    """Return the payloads of all captured IP packets of a protocol."""
    found = []
    with open(path, "rb") as file:
        while len(head := file.read(LENGTH.size)) == LENGTH.size:
            frame = file.read(LENGTH.unpack(head)[0])
            if frame[12:14] == b"\x08\x00" and frame[14 + 9] == protocol:
                found.append(frame[14 + 4 * (frame[14] & 15) :])
    return found


class Spoofer:
    """Receives the server's datagrams, and forges similar ones."""

    def __init__(self, ways: list[str]) -> None:
        self._ways = ways
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind(("eth0", 3))
        self._socket.setblocking(False)
        self._recorded: deque[bytes] = deque(maxlen=MAX_RECORDED)
        self._head = b""
        self._control: list[bytes] = []
        self._descriptor: Descriptor | None = None
        self._chance = random.Random(1)
        self.sent = 0

    def listen(self) -> list[bytes]:
        """Record the received datagrams, and return the announcements among them."""
        announced = []
        for _ in range(200):
            try:
                frame, address = self._socket.recvfrom(1 << 16)
            except BlockingIOError:
                break
            outgoing = address[2] == socket.PACKET_OUTGOING
            if outgoing or frame[23] != 17 or frame[36:38] != PORT.to_bytes(2, "big"):
                continue
            self._head = frame[:HEADERS]
            data = frame[HEADERS:]
            self._recorded.append(data)
            try:
                controls = [each for each in parse(data) if len(each) == 2]
            except MalformedSegment:
                continue
            for phase, descriptor in controls:
                self._descriptor = descriptor
                self._control = [data[-CONTROL_SIZE:], *self._control[:200]]
                if phase == ANNOUNCEMENT:
                    announced.append(data)
        return announced

    def send(self, data: bytes) -> None:
        """Send a datagram with the server's address."""
        head = bytearray(self._head)
        # With the server's MAC address, a switch would forward the server's packets to this host.
        head[6:12] = self._socket.getsockname()[4]
        head[16:18] = (28 + len(data)).to_bytes(2, "big")
        head[24:26] = bytes(2)
        words = struct.unpack("!10H", head[14:34])
        total = sum(words)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        head[24:26] = (~total & 0xFFFF).to_bytes(2, "big")
        head[38:40] = (8 + len(data)).to_bytes(2, "big")
        head[40:42] = bytes(2)  # no checksum
        try:
            self._socket.send(bytes(head) + data)
            self.sent += 1
        except OSError:
            pass  # the link is full

    def forge(self) -> bytes:
        """Return a packet of one of the selected kinds."""
        chance, real = self._chance, self._descriptor
        assert real is not None
        way = chance.choice([way for way in self._ways if way != "spoil"] or ["noise"])
        if way == "replay":
            return chance.choice(self._recorded)
        step = chance.choice([1, 2, -1, 126, 1 << 20, (1 << 31) - 1, -(1 << 31)])
        if way == "noise":
            far = chance.choice([1 << 20, -(1 << 20), 126 << 20, 1 << 30, -(1 << 31)])
            number = (real.first + far) % (1 << 32)
            return HEADER.pack(TRANSMISSION, SEGMENT, number) + chance.randbytes(SEGMENT)
        packet = evolve(
            real,
            transfer=(real.transfer + chance.choice([step, 1 << 32])) % (1 << 64),
            first=(real.first + step) % (1 << 32),
            offset=chance.randrange(64) * BLOCK,
            total=BLOCK,
        ).encode(chance.choice([ANNOUNCEMENT, COMPLETION, REPAIRED]), SEGMENT)
        forged = packet[:-MAC_SIZE] + chance.choice([real.mac, chance.randbytes(MAC_SIZE)])
        # Or splice two genuine packets.
        if self._control and chance.random() < 0.5:
            a, b = chance.choice(self._control), chance.choice(self._control)
            at = chance.randrange(12, CONTROL_SIZE)
            forged = a[:at] + b[at:] if a[:at] + b[at:] not in (a, b) else forged
        return forged

    def spoil(self, announcements: list[bytes]) -> None:
        """Send segments of zeros for each announced transfer."""
        for data in announcements:
            number = int.from_bytes(data[20:24], "big")
            for _ in range(3):
                for index in (0, 20, 90):
                    place = (number + index) % (1 << 32)
                    self.send(HEADER.pack(TRANSMISSION, SEGMENT, place) + bytes(SEGMENT))

    def run(self, rate: float) -> None:
        """Send C{rate} packets a second for L{RUN_SECONDS}."""
        begun = reported = time.monotonic()
        due = 0.0
        while (now := time.monotonic()) < begun + RUN_SECONDS:
            announcements = self.listen()
            if "spoil" in self._ways:
                self.spoil(announcements)
            if self._descriptor is not None and set(self._ways) != {"spoil"}:
                for _ in range(20):
                    if due <= now:
                        due = max(due, now - 0.01) + 1 / rate
                        self.send(self.forge())
            if now > reported + 1:
                reported = now
                print(f"sent {self.sent}", flush=True)
            time.sleep(0 if rate > 10_000 else 0.0005)


def main(arguments: list[str]) -> None:
    """Run the command line of the module."""
    if arguments[0] == "capture":
        capture(arguments[1])
    else:
        rate = float(arguments.pop()) if arguments[-1].isdecimal() else 2000.0
        Spoofer(arguments).run(rate)


if __name__ == "__main__":
    main(sys.argv[1:])
