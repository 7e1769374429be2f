"""Listening at an endpoint, as a service."""

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.python.failure import Failure

from mufs.endpoints import why_not_listening


class ListeningService(Service):
    """
    Listens at an endpoint for as long as it runs.

    Twisted's C{StreamServerEndpointService} only logs that it cannot listen, and stays up; here
    the parent is told, to end the process.

    @ivar port: C{None} unless it listens.
    """

    def __init__(
        self,
        endpoint: IStreamServerEndpoint,
        factory: IProtocolFactory,
        *,
        on_failed: Callable[[str], None],
        on_listening: Callable[[IListeningPort], None] = lambda port: None,
    ) -> None:
        """@param on_failed: called with the reason when it cannot listen."""
        self._endpoint = endpoint
        self._factory = factory
        self._on_listening = on_listening
        self._on_failed = on_failed
        self.port: IListeningPort | None = None

    def startService(self) -> None:
        """Listen."""
        super().startService()
        listening = self._endpoint.listen(self._factory)
        listening.addCallbacks(self._listening, self._failed)

    def stopService(self) -> "Deferred[object] | None":
        """Stop listening; fires when the port is closed."""
        super().stopService()
        port, self.port = self.port, None
        return None if port is None else maybeDeferred(port.stopListening)

    def _listening(self, port: IListeningPort) -> None:
        self.port = port
        self._on_listening(port)

    def _failed(self, failure: Failure) -> None:
        self._on_failed(why_not_listening(failure.value))
