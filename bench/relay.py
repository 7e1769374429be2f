"""A TCP relay that delays, so that a server seems remote.

    python bench/relay.py LISTEN_PORT SERVER_ADDRESS SERVER_PORT SECONDS

What arrives from either side is passed on SECONDS later, at any rate.
"""

from __future__ import annotations

import asyncio
import socket
import sys


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Pass on a stream until its end, each piece `delay` seconds after it arrived."""
    loop = asyncio.get_running_loop()
    while data := await reader.read(1 << 20):
        loop.call_later(delay, writer.write, data)
    loop.call_later(delay, writer.close)


async def serve(port: int, address: str, server_port: int, delay: float) -> None:
    """Relay every connection to the port."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(address, server_port)
        for each in (writer, far_writer):
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(carry(reader, far_writer, delay), carry(far_reader, writer, delay))

    server = await asyncio.start_server(relay, port=port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
