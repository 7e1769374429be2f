"""A server and very many clients in a simulated network.

    python bench/scale.py [--clients N,N,...] [--size MIB] [--rate MBITS] [--loss PERCENT]

The server and the clients are the real ones, without sockets, threads and mounts. All clients read
one image at the same moment, and lose datagrams independently of each other. The figures are the
same on any machine. A thousand clients and 2 MiB take about a minute.
"""

from __future__ import annotations

import argparse
import resource

import attrs

from mufs.test.support.simulation import MIB, SimulatedNetwork

PATH = b"disk.img"


@attrs.frozen
class Run:
    """The figures of all clients reading the image once."""

    images: float
    """Bytes of multicast, in images."""
    over_tcp: float
    """All bytes that the server sent over TCP, in images."""
    seconds: float
    longest: float
    """The longest wait of a read, in seconds."""
    lost: int
    """Segments lost, summed over all clients."""
    repairs: int
    """REPAIR packets that the clients sent."""
    reads: int
    """READs that the server handled."""
    merged: int
    """READs that joined others."""


def read_by_all(clients: int, size: int, *, rate: float, loss: float) -> Run:
    """Let a number of clients read an image of `size` bytes; `rate` is in bits per second."""
    network = SimulatedNetwork(
        1, clients, link=rate, loss=loss, latency=0.0002, cache_size=2 * size, timeout=600.0
    )
    network.put_image(PATH, size)
    seconds = network.lockstep(PATH)
    server = network.server
    sent = server.controller.segments_sent + server.controller.parity_sent
    received = sum(client.remote.receiver.segments_received for client in network.clients)
    return Run(
        images=server.controller.bytes_multicast / size,
        over_tcp=sum(each.stream.peer.bytes_sent for each in network.clients if each.stream) / size,
        seconds=max(seconds),
        longest=max(client.longest_wait for client in network.clients),
        lost=(sent + server.controller.segments_repaired) * clients - received,
        repairs=sum(client.remote.repairs.repairs_sent for client in network.clients),
        reads=server.queue.requests,
        merged=server.queue.merged,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate a server and very many clients.")
    parser.add_argument("--clients", default="10,100,1000", help="numbers of clients [%(default)s]")
    parser.add_argument(
        "--size", type=float, default=2, help="size of the image, in MiB [%(default)s]"
    )
    parser.add_argument("--rate", type=float, default=100, help="Mbit/s of the links [%(default)s]")
    parser.add_argument(
        "--loss", type=float, default=1, help="loss at each client, in percent [%(default)s]"
    )
    options = parser.parse_args()
    size = int(options.size * MIB)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    columns = [
        "clients", "multicast, images", "over TCP, images", "repairs a lost segment",
        "READs merged", "longest wait, s", "without loss", "all done, s", "without loss",
    ]  # fmt: skip
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for clients in map(int, options.clients.split(",")):
        lossless = read_by_all(clients, size, rate=options.rate * 1e6, loss=0.0)
        lossy = read_by_all(clients, size, rate=options.rate * 1e6, loss=options.loss / 100)
        print(
            f"| {clients} | {lossy.images:.3f} | {lossy.over_tcp:.3f} "
            f"| {lossy.repairs / max(1, lossy.lost):.2f} | {lossy.merged / lossy.reads:.1%} "
            f"| {lossy.longest:.3f} | {lossless.longest:.3f} "
            f"| {lossy.seconds:.2f} | {lossless.seconds:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
