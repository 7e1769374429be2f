"""A service that listens at an endpoint."""

import os
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mufs.listening import ListeningService


class RecordingPort:
    """A port without a socket."""

    def __init__(self) -> None:
        self.listening = True

    def stopListening(self) -> None:
        """See L{IListeningPort.stopListening}."""
        self.listening = False


@implementer(IStreamServerEndpoint)
class RecordingEndpoint:
    """Listens as the test wants it."""

    def __init__(self, result: Deferred[Any]) -> None:
        self.result = result
        self.factories: list[object] = []

    def listen(self, factory: Any) -> Deferred[Any]:
        """See L{IStreamServerEndpoint.listen}."""
        self.factories.append(factory)
        return self.result


class ListeningTests(SynchronousTestCase):
    """Starts, failures and ends."""

    def start(self, result: Deferred[Any]) -> ListeningService:
        """Start a service whose endpoint gives this."""
        self.listening: list[object] = []
        self.failed: list[str] = []
        self.factory = Factory()
        self.endpoint = RecordingEndpoint(result)
        service = ListeningService(
            self.endpoint,
            self.factory,
            on_listening=self.listening.append,
            on_failed=self.failed.append,
        )
        service.startService()
        return service

    def test_listens(self) -> None:
        """It listens with its factory, and closes the port in the end."""
        port = RecordingPort()
        service = self.start(succeed(port))
        self.assertEqual(self.endpoint.factories, [self.factory])
        self.assertEqual(self.listening, [port])
        self.assertIs(service.port, port)
        stopped = service.stopService()
        assert stopped is not None
        self.successResultOf(stopped)
        self.assertFalse(port.listening)
        self.assertIsNone(service.port)

    def test_taken(self) -> None:
        """A port that is taken is reported, by its address, and without a traceback."""
        error = CannotListenError("127.0.0.1", 7040, OSError(98, "Address already in use"))
        service = self.start(fail(error))
        self.assertEqual(self.failed, ["port 7040 is in use by another program"])
        self.assertEqual(self.listening, [])
        self.assertIsNone(service.port)
        self.assertIsNone(service.stopService())
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_words(self) -> None:
        """What is wrong with port or address is reported in words."""
        for number, interface, port, words in [
            (13, "", 80, "only root may use port 80"),
            (99, "192.0.2.1", 7040, "this host has no address 192.0.2.1"),
            (13, "", "/run/socket", "/run/socket: Permission denied"),
            (98, "", "/run/socket", "/run/socket is in use by another program"),
            (101, "", 7040, "port 7040: Network is unreachable"),
        ]:
            error = CannotListenError(interface, port, OSError(number, os.strerror(number)))
            self.start(fail(error))
            self.assertEqual(self.failed, [words])

    def test_other_errors(self) -> None:
        """Other errors are reported by their text."""
        self.start(fail(ValueError("no such thing")))
        self.assertEqual(self.failed, ["no such thing"])
