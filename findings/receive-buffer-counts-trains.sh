#!/bin/sh
# Linux: how many datagrams a UDP receive buffer holds depends on how they come. 212,992 bytes, the
# default, hold 92 of 1,412 bytes that come one by one, and 116 to 140 of the same when they come
# as trains (UDP_SEGMENT) to a socket with UDP_GRO: most for trains of 10 to 20, fewer again for
# the longest trains, since a train is kept or dropped as a whole.
#
# Expected: the same number, for the bytes are the same, or a multiple of the longest train at the
# least. Without UDP_GRO a train is taken apart before it is charged, and gains nothing.
#
# Needs nothing but Python 3, and uses the loopback interface alone.
set -eu
uname -sr
python3 - <<'PYTHON'
import socket
import sys

UDP_SEGMENT, UDP_GRO = 103, 104
SIZE = 1412
BUFFER = 212_992


def held(train, gro):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER // 2)
        receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, gro)
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        sender.connect(receiver.getsockname())
        if train > 1:
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SIZE)
        for _ in range(1000 // train):
            sender.send(bytes(SIZE * train))
        received = 0
        while True:
            try:
                received += len(receiver.recv(65535))
            except BlockingIOError:
                return received // SIZE


found = {}
for gro in (0, 1):
    for train in (1, 2, 5, 10, 20, 45):
        found[gro, train] = held(train, gro)
        print(f"UDP_GRO {gro}, trains of {train:2}: {found[gro, train]} datagrams held")
single = found[0, 1]
same = all(
    [
        all(abs(found[0, train] - single) <= 3 for train in (2, 5, 10, 20, 45)),
        found[1, 1] == single,
        all(found[1, train] >= 1.2 * single for train in (2, 5, 10, 20, 45)),
        found[1, 45] < found[1, 20],
    ]
)
sys.exit(0 if same else "the behaviour has changed")
PYTHON
