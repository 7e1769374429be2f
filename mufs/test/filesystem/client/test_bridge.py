"""The bridge between threads and the reactor, with real threads and a real reactor."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mufs.filesystem.client.attributes import AttributeCache
from mufs.filesystem.client.bridge import WATCH_INTERVAL, Bridge
from mufs.filesystem.client.images import OpenImage
from mufs.filesystem.client.reading.sequences import SequenceDetector
from mufs.test.support.doubles import make_attributes
from mufs.wire.metadata import NOBODY, Attributes, Caller
from mufs.wire.pages import BLOCK

SIZE = 1024 * BLOCK
TIMEOUT = 10.0


def main_thread() -> bool:
    """Whether this is the reactor's thread."""
    return threading.current_thread() is threading.main_thread()


class Reader:
    """Reads as the test decides, and has each hit read something ahead."""

    def __init__(self) -> None:
        self.cached = True
        self.answer: Callable[[], Deferred[Any]] = lambda: succeed(None)
        self.asked: list[tuple[str, bool]] = []
        self.ahead: list[bool] = []

    def read_cached(
        self, opened: OpenImage, offset: int, target: memoryview, *, cross: Callable[..., object]
    ) -> int | None:
        """See L{mufs.filesystem.client.reading.reader.Reader.read_cached}."""
        if not self.cached:
            return None
        cross(self.prefetch)
        return len(target)

    def read(self, opened: OpenImage, offset: int, target: memoryview) -> Deferred[int]:
        """See L{mufs.filesystem.client.reading.reader.Reader.read}."""
        self.asked.append(("read", main_thread()))
        return self.answer()

    def prefetch(self) -> None:
        """See L{mufs.filesystem.client.reading.reader.Reader.prefetch}."""
        self.ahead.append(main_thread())


class Remote:
    """A file system with one open image, whose answers the test decides."""

    def __init__(self) -> None:
        self.attributes = AttributeCache(Clock())
        self.last_heard = 0.0
        self.reader = Reader()
        self.asked = self.reader.asked
        self.released: list[tuple[int, bool]] = []
        detector = SequenceDetector(SIZE)
        self.image = OpenImage(b"image", (1, 1), make_attributes(SIZE), detector)

    def opened(self, handle: int) -> OpenImage:
        """See L{mufs.filesystem.client.remote.RemoteFileSystem.opened}."""
        return self.image

    def getattr(self, path: bytes, handle: int | None, caller: Caller) -> Deferred[Attributes]:
        """See L{mufs.filesystem.client.remote.RemoteFileSystem.getattr}."""
        self.asked.append(("getattr", main_thread()))
        return self.reader.answer()

    def release(self, handle: int) -> None:
        """See L{mufs.filesystem.client.remote.RemoteFileSystem.release}."""
        self.released.append((handle, main_thread()))


class BridgeTests(TestCase):
    """Operations of other threads."""

    timeout = 30.0

    def setUp(self) -> None:
        """Have a bridge."""
        self.remote = Remote()
        self.bridge = self.make(TIMEOUT)

    def make(self, timeout: float, asker: int = 0) -> Bridge:
        """A bridge whose operations may take so long, all for one thread."""
        remote: Any = self.remote
        reactor: Any = global_reactor
        bridge = Bridge(reactor, remote, timeout, asker=lambda: asker)
        self.addCleanup(bridge.stop)
        return bridge

    def lookup(self, path: bytes = b"image", bridge: Bridge | None = None) -> Deferred[Any]:
        """Ask for attributes in another thread."""
        return deferToThread((bridge or self.bridge).getattr, path, None, lambda: NOBODY)

    def read(self, bridge: Bridge) -> Deferred[Any]:
        """Read in another thread."""
        return deferToThread(bridge.read, 1, 0, memoryview(bytearray(100)))

    @inlineCallbacks
    def assert_error(self, found: Deferred[Any], text: str) -> Any:
        """An operation ends with EIO."""
        error = yield self.assertFailure(found, OSError)
        self.assertEqual((error.errno, error.strerror), (errno.EIO, text))

    @inlineCallbacks
    def test_call(self) -> Any:
        """An operation runs in the reactor's thread; its result, or error, is the caller's."""
        self.remote.reader.answer = lambda: succeed(make_attributes(5))
        found = yield self.lookup()
        self.assertEqual(found, make_attributes(5))
        self.assertEqual(self.remote.asked, [("getattr", True)])

        def fail() -> Deferred[Any]:
            raise OSError(errno.ENOENT, "none")

        self.remote.reader.answer = fail
        error = yield self.assertFailure(self.lookup(), OSError)
        self.assertEqual(error.errno, errno.ENOENT)

    @inlineCallbacks
    def test_known_attributes(self) -> Any:
        """Known attributes need no reactor."""
        self.remote.attributes.put(b"image", make_attributes(5), 0.0)
        self.assertEqual((yield self.lookup()), make_attributes(5))
        self.assertEqual(self.remote.asked, [])

    @inlineCallbacks
    def test_hit(self) -> Any:
        """A read that the cache answers does not wait for the reactor."""
        found = yield deferToThread(self.bridge.read, 1, 0, memoryview(bytearray(100)))
        self.assertEqual((found, self.remote.asked), (100, []))

    @inlineCallbacks
    def test_miss(self) -> Any:
        """One that it cannot answer goes to the reactor."""
        self.remote.reader.cached = False
        self.remote.reader.answer = lambda: succeed(77)
        found = yield deferToThread(self.bridge.read, 1, 0, memoryview(bytearray(100)))
        self.assertEqual((found, self.remote.asked), (77, [("read", True)]))

    @inlineCallbacks
    def test_read_ahead(self) -> Any:
        """What a hit has read ahead is asked for in the reactor's thread."""
        yield deferToThread(self.bridge.read, 1, 0, memoryview(bytearray(BLOCK)))
        self.assertEqual(self.remote.reader.ahead, [True])

    @inlineCallbacks
    def test_release(self) -> Any:
        """Releasing an image waits for nobody, and happens in the reactor's thread."""
        yield deferToThread(self.bridge.release, 7)
        yield deferToThread(lambda: None)
        self.assertEqual(self.remote.released, [(7, True)])

    @inlineCallbacks
    def test_timeout(self) -> Any:
        """What takes too long is cancelled and ends with EIO; what came in time is not."""
        cancelled: list[object] = []
        self.remote.reader.answer = lambda: Deferred(cancelled.append)
        bridge = self.make(0.05)
        lookups = [self.lookup(bridge=bridge) for _ in range(2)]
        for each in lookups:
            yield self.assert_error(each, "no answer from the server in time")
        self.assertEqual(len(cancelled), 2)
        self.remote.reader.answer = lambda: succeed(make_attributes(5))
        self.assertEqual((yield self.lookup(bridge=bridge)), make_attributes(5))

    @inlineCallbacks
    def test_timeout_once(self) -> Any:
        """While the server says nothing, whoever has read in vain does not wait again."""
        self.remote.reader.answer, self.remote.reader.cached = Deferred, False
        self.remote.last_heard = global_reactor.seconds()
        bridge = self.make(0.4, os.getpid())
        text = "no answer from the server in time"
        yield self.assert_error(self.lookup(bridge=bridge), text)
        bridge._timeout = 0.5
        yield self.assert_error(self.read(bridge), text)
        bridge._timeout = 60.0
        yield self.assert_error(self.read(bridge), text)
        self.assertEqual([name for name, _ in self.remote.asked], ["getattr", "read", "read"])
        lookup = self.lookup(bridge=bridge)
        yield deferLater(global_reactor, 3 * WATCH_INTERVAL)
        self.assertNoResult(lookup)
        bridge.stop()
        yield self.assert_error(lookup, "the mount is ending")

    @inlineCallbacks
    def test_interrupted(self) -> Any:
        """Without a timeout an operation ends with EINTR when whoever asked for it has to end."""
        gone = subprocess.Popen(["true"])
        gone.wait()
        self.remote.reader.answer = Deferred
        lookup = self.lookup(bridge=self.make(0, gone.pid))
        error = yield self.assertFailure(lookup, OSError)
        self.assertEqual(error.errno, errno.EINTR)

    @inlineCallbacks
    def test_no_timeout(self) -> Any:
        """Without a timeout an operation waits for whoever is there."""
        waits: Deferred[Any] = Deferred()
        self.remote.reader.answer = lambda: waits
        lookup = self.lookup(bridge=self.make(0, os.getpid()))
        yield deferLater(global_reactor, 3 * WATCH_INTERVAL)
        self.assertNoResult(lookup)
        waits.callback(make_attributes(5))
        self.assertEqual((yield lookup), make_attributes(5))

    @inlineCallbacks
    def test_stop(self) -> Any:
        """Stopping fails what waits, and what comes later, and releases nothing any more."""
        waits: Deferred[None] = Deferred()
        reactor: Any = global_reactor

        def answer() -> Deferred[Any]:
            reactor.callLater(0, waits.callback, None)
            return Deferred()

        self.remote.reader.answer = answer
        lookup = self.lookup()
        yield waits
        self.bridge.stop()
        yield self.assert_error(lookup, "the mount is ending")
        yield self.assert_error(self.lookup(), "the mount is ending")
        yield deferToThread(self.bridge.release, 7)
        yield deferToThread(lambda: None)
        self.assertEqual(self.remote.released, [])

    @inlineCallbacks
    def test_run(self) -> Any:
        """A function runs in a daemon thread of that name; its end, or error, is told here."""
        found: list[tuple[str, bool]] = []

        def body() -> None:
            thread = threading.current_thread()
            found.append((thread.name, thread.daemon))

        yield self.bridge.run(body, "fuse")
        self.assertEqual(found, [("fuse", True)])

        def fail() -> None:
            raise RuntimeError(1)

        yield self.assertFailure(self.bridge.run(fail, "fuse"), RuntimeError)


class CallInReactorTests(SynchronousTestCase):
    """Calls that are not waited for."""

    def test_call_in_reactor(self) -> None:
        """The reactor is given the function and its arguments."""
        given: list[tuple[object, ...]] = []

        class Reactor:
            """Takes calls."""

            def callFromThread(self, *call: object) -> None:
                """See L{IReactorFromThreads.callFromThread}."""
                given.append(call)

        reactor: Any = Reactor()
        remote: Any = Remote()
        Bridge(reactor, remote, TIMEOUT).call_in_reactor(print, 1, 2)
        self.assertEqual(given, [(print, 1, 2)])
