"""The limits of a server with real sockets."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks, succeed
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.task import deferLater
from twisted.protocols.policies import WrappingFactory
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from mufs.communication.server.limits import (
    MAX_CONNECTIONS_OF_HOST,
)
from mufs.filesystem.server.library import ExportedDirectory
from mufs.server import ServerService, ServerSettings
from mufs.test.support.channels import HELLO
from mufs.wire.channel import Type


@implementer(IStreamServerEndpoint)
class Wrapped:
    """An endpoint on 127.0.0.1 that wraps its factory, as TLS does."""

    def listen(self, factory: Any) -> Any:
        """See L{IStreamServerEndpoint.listen}."""
        outer: Any = WrappingFactory(factory)
        self.port: Any = reactor.listenTCP(0, outer, interface="127.0.0.1")
        return succeed(self.port)


class FloodTests(TestCase):
    """A flood of connections to a server with real sockets."""

    timeout = 30

    @inlineCallbacks
    def test_refused(self) -> Any:
        """Excess connections are told so and closed; those from another address are accepted."""
        directory = self.mktemp()
        os.mkdir(directory)
        endpoint = Wrapped()
        server = ServerService(
            reactor,
            ServerSettings(
                group="239.5.5.77",
                port=7141,
                interface="127.0.0.1",
                rate_min=10**6,
                rate_max=10**9,
            ),
            library=ExportedDirectory(directory),
            secret=bytes(32),
            listen=endpoint,
            status=None,
        )
        server.startService()
        self.addCleanup(server.stopService)
        number = endpoint.port.getHost().port
        made = []
        for _ in range(MAX_CONNECTIONS_OF_HOST + 40):
            made.append(socket.create_connection(("127.0.0.1", number)))
            made[-1].setblocking(False)
            self.addCleanup(made[-1].close)
            yield deferLater(reactor, 0)
        while server.figures()["refused"] != 40:
            yield deferLater(reactor, 0.02)
        self.assertEqual(server.figures()["connections"], MAX_CONNECTIONS_OF_HOST)
        for each in made[:MAX_CONNECTIONS_OF_HOST]:
            self.assertRaises(BlockingIOError, each.recv, 1)
        for each in made[MAX_CONNECTIONS_OF_HOST:]:
            self.assertIn(b"too many connections", each.recv(100))
        other = socket.create_connection(("127.0.0.1", number), source_address=("127.0.0.2", 0))
        self.addCleanup(other.close)
        other.sendall(HELLO)
        other.setblocking(False)
        answer = b""
        while not answer:
            yield deferLater(reactor, 0.02)
            try:
                answer = other.recv(1)
            except BlockingIOError:
                continue
        self.assertEqual(answer[0], Type.WELCOME)
