"""The threads in which a server calls its library: a call may hang as long as a disk does."""

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool


class DaemonThreads:
    """
    A pool of threads that do not keep the process alive.

    The reactor's own pool would wait for a hanging thread when the process ends.
    """

    def __init__(self, reactor: Any, max_threads: int, name: str) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, max_threads, name)
        daemon = partial(ThreadPool.threadFactory, daemon=True)
        self._pool.threadFactory = daemon  # type: ignore[assignment]

    def start(self) -> None:
        """Run the calls made so far, and further ones as they are made."""
        self._pool.start()

    def stop(self) -> None:
        """Wait for the calls in progress, and end the threads."""
        self._pool.stop()

    def call(self, function: Callable[..., Any], *args: Any) -> "Deferred[Any]":
        """Call a function in a thread; the result comes in the reactor's thread."""
        return deferToThreadPool(self._reactor, self._pool, function, *args)
