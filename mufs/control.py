"""
The control socket of a service, for commands on its host (docs/operations/reference.md).

It serves all that the C{--status} endpoint does, and tasks that change something.
"""

import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import BAD_REQUEST
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from mufs.sockets import new_socket
from mufs.status.events import StreamedResponse
from mufs.status.site import QuietSite, StatusSite

MAX_REQUEST_BYTES = 1 << 20
"""Bytes of a request."""

Record = dict[str, object]

Task = Callable[[dict[str, Any], Callable[[Record], None]], "Deferred[Record]"]
"""
Carries out a request, reports its progress, and returns a Deferred with its result, which may be
cancelled, and fails with C{OSError} or C{ValueError} when the request is wrong.
"""


class _Answer(StreamedResponse):
    """Lines of JSON; progress is left out while the other side does not read."""

    _log = Logger()

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.disconnected = False

    def tell(self, record: Record) -> None:
        if not self.full:
            self._write(record)

    def end(self, record: Record) -> None:
        if not self.disconnected:
            self._write(record)
            self.request.unregisterProducer()
            self.request.finish()

    def fail(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, CancelledError):
            self.end({"error": "interrupted: the service ends"})
        elif isinstance(error, OSError):
            self.end({"error": error.strerror or str(error), "errno": error.errno})
        elif isinstance(error, ValueError):
            self.end({"error": str(error)})
        elif not self.disconnected:
            self._log.failure("a task of the control socket failed", failure)
            self.end({"error": "the service failed; its log says how"})

    def _write(self, record: Record) -> None:
        self.request.write(json.dumps(record).encode() + b"\n")


class TaskResource(Resource):
    """Runs a task for each POST, for as long as its connection lasts."""

    isLeaf = True

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._task = task
        self._running: dict[_Answer, Deferred[None]] = {}

    def render_POST(self, request: Request) -> bytes | int:
        """Begin the task."""
        assert request.content is not None
        try:
            asked = json.loads(request.content.read(MAX_REQUEST_BYTES))
            if not isinstance(asked, dict):
                raise ValueError
        except ValueError:
            request.setResponseCode(BAD_REQUEST)
            return b"no JSON object\n"
        request.setHeader("content-type", "application/jsonl")
        answer = _Answer(request)
        request.registerProducer(answer, True)
        # The task may take a while: send the headers now, so that the command knows it has begun.
        request.write(b"")
        request.notifyFinish().addErrback(self._gone, answer)
        running = maybeDeferred(self._task, asked, answer.tell)
        self._running[answer] = done = running.addCallbacks(answer.end, answer.fail)
        done.addBoth(self._ended, answer)
        return NOT_DONE_YET

    def stop(self) -> None:
        """Cancel all tasks that are running."""
        for running in list(self._running.values()):
            running.cancel()

    def _ended(self, _: object, answer: _Answer) -> None:
        self._running.pop(answer, None)

    def _gone(self, _: object, answer: _Answer) -> None:
        answer.disconnected = True
        running = self._running.get(answer)
        if running is not None:
            running.cancel()


class _ControlSite(QuietSite):
    def __init__(self, clock: Any, status: StatusSite, more: Mapping[bytes, Resource]) -> None:
        root = Resource()
        super().__init__(root, reactor=clock)
        self._status = status
        for name, child in {**status.resource.children, **more}.items():
            root.putChild(name, child)

    def startFactory(self) -> None:
        # Both sites share one history.
        self._status.doStart()

    def stopFactory(self) -> None:
        self._status.doStop()


class Control:
    """The control socket of a service. If there can be none, the service runs without it."""

    _log = Logger()

    def __init__(
        self, reactor: Any, kind: str, *, status: StatusSite, tasks: Mapping[str, Task]
    ) -> None:
        """@param tasks: by the path that a request is posted to."""
        self._reactor = reactor
        self._kind = kind
        self._tasks = {name.encode(): TaskResource(task) for name, task in tasks.items()}
        self._site = _ControlSite(reactor, status, self._tasks)
        self._port: IListeningPort | None = None

    def listen(self, name: str) -> None:
        """Listen; C{name} distinguishes this service from others of its kind."""
        try:
            path = new_socket(self._kind, name)
            _remove_stale(path)
            endpoint = UNIXServerEndpoint(self._reactor, path, mode=0o600, wantPID=True)
        except OSError as error:
            self._go_on_without(error.filename, error.strerror)
        else:
            endpoint.listen(self._site).addCallbacks(
                self._listening, lambda failure: self._cannot_listen(path, failure)
            )

    def stop(self) -> "Deferred[Any]":
        """Cancel all tasks, and close the socket."""
        for each in self._tasks.values():
            each.stop()
        port, self._port = self._port, None
        return succeed(None) if port is None else maybeDeferred(port.stopListening)

    def _listening(self, port: IListeningPort) -> None:
        self._port = port

    def _cannot_listen(self, path: str, failure: Failure) -> None:
        if self._site.numPorts:
            self._site.doStop()  # Twisted does not
        reason = failure.value
        if isinstance(reason, CannotListenError):
            reason = reason.socketError
        self._go_on_without(path, getattr(reason, "strerror", None) or reason)

    def _go_on_without(self, path: str, reason: object) -> None:
        self._log.warn(
            "no control socket at {path}: {reason}; going on without", path=path, reason=reason
        )


def _remove_stale(path: str) -> None:
    """
    Remove a socket that nobody listens on any more, and its lock. The lock alone does not tell
    whether that is so: another process may have the number of the one that held it.
    """
    probe = socket.socket(socket.AF_UNIX)
    probe.setblocking(False)
    try:
        probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        for left in (path, f"{path}.lock"):
            with suppress(FileNotFoundError):
                os.unlink(left)
    except OSError:
        pass
    finally:
        probe.close()
