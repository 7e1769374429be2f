"""Logging to the journal and to syslog, over real sockets."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from struct import unpack_from
from typing import TextIO

from twisted.logger import ILogObserver, Logger, LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase
from zope.interface.verify import verifyObject

from mufs.journal import MAX_FIELD_BYTES, Observer, is_stream
from mufs.test.support.processes import CHECKOUT

LOG_TO_SYSLOG = """
from twisted.logger import Logger
from twisted.python.failure import Failure
from mufs.journal import Observer
log = Logger("mufs.x", observer=Observer("mufs-client", "/nowhere"))
log.warn("it rains")
try:
    1 / 0
except ZeroDivisionError:
    log.failure("bad luck")
"""


def fields(datagram: bytes) -> dict[str, bytes]:
    """The fields of an entry, all in the form with a length."""
    found = {}
    while datagram:
        name, _, rest = datagram.partition(b"\n")
        (length,) = unpack_from("<Q", rest)
        found[name.decode()] = rest[8 : 8 + length]
        assert rest[8 + length : 9 + length] == b"\n"
        datagram = rest[9 + length :]
    return found


class JournalTests(SynchronousTestCase):
    """Entries in the journal."""

    def setUp(self) -> None:
        """Listen as the journal does."""
        self.directory = Path(tempfile.mkdtemp(prefix="mufs-journal-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.journal.close)
        self.journal.bind(str(self.directory / "socket"))
        self.journal.setblocking(False)
        self.observer = Observer("mufs-server", str(self.directory / "socket"))
        self.log = Logger("mufs.server", observer=self.observer)

    def entry(self) -> dict[str, bytes]:
        """Return the next entry."""
        return fields(self.journal.recv(1 << 20))

    def test_interface(self) -> None:
        """It provides C{ILogObserver}."""
        verifyObject(ILogObserver, self.observer)

    def test_levels(self) -> None:
        """Each level has its priority."""
        expected = {"debug": b"7", "info": b"6", "warn": b"4", "error": b"3", "critical": b"2"}
        for name, number in expected.items():
            self.log.emit(LogLevel.levelWithName(name), "something")
            self.assertEqual(self.entry()["PRIORITY"], number)

    def test_fields(self) -> None:
        """An entry has fields for the service, the namespace, and the keys of the event."""
        self.log.info("{client} uses {group} on {port}", client="host1", group="239.5.5.0", port=1)
        self.assertEqual(
            self.entry(),
            {
                "MESSAGE": b"host1 uses 239.5.5.0 on 1",
                "PRIORITY": b"6",
                "SYSLOG_IDENTIFIER": b"mufs-server",
                "MUFS_NAMESPACE": b"mufs.server",
                "MUFS_CLIENT": b"host1",
                "MUFS_GROUP": b"239.5.5.0",
            },
        )

    def test_failure(self) -> None:
        """A failure is one entry with its traceback, an error."""
        try:
            raise ZeroDivisionError("no luck")
        except ZeroDivisionError:
            self.log.failure("cannot divide", Failure())
        entry = self.entry()
        self.assertEqual(entry["PRIORITY"], b"3")
        self.assertRegex(entry["MESSAGE"], rb"(?s)cannot divide\nTraceback.*no luck")
        self.assertRaises(BlockingIOError, self.entry)

    def test_forged(self) -> None:
        """Text from outside cannot add a field or an entry."""
        self.log.info("{client} came", client="x\nPRIORITY=0\n\nMESSAGE=all is well\n")
        self.assertEqual(self.entry()["PRIORITY"], b"6")
        self.assertRaises(BlockingIOError, self.entry)

    def test_odd_text(self) -> None:
        """Text that is not Unicode, or is very long, makes an entry, too."""
        self.log.info("{text}", text="\udcff" + "x" * (1 << 20))
        message = self.entry()["MESSAGE"]
        self.assertTrue(message.startswith(b"\\udcff"))
        self.assertEqual(len(message), MAX_FIELD_BYTES)

    def test_of_twisted(self) -> None:
        """Messages of Twisted have the lowest level, but its warnings are warnings."""
        of_twisted = Logger("twisted.internet", observer=self.observer)
        of_twisted.info("a port is open")
        self.assertEqual(self.entry()["PRIORITY"], b"7")
        of_twisted.warn("a port is not")
        self.assertEqual(self.entry()["PRIORITY"], b"4")

    def test_full(self) -> None:
        """A journal that accepts nothing does not block the service."""
        said = self.directory / "said"
        with open(said, "w") as stream:
            self.patch(sys, "__stderr__", stream)
            for _ in range(1000):
                self.log.info("one more")
        self.assertIn("mufs-server: one more (the journal: ", said.read_text())

    def test_is_stream(self) -> None:
        """A stream leads to the journal if it is the file that systemd names."""
        with open(self.directory / "file", "w") as stream:
            there = os.fstat(stream.fileno())
            self.patch(os, "environ", {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"})
            self.assertTrue(is_stream(stream))
            self.patch(os, "environ", {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino + 1}"})
            self.assertFalse(is_stream(stream))
            self.patch(os, "environ", {})
            self.assertFalse(is_stream(stream))
        self.assertFalse(is_stream(stream))
        nothing: TextIO | None = None
        self.assertFalse(is_stream(nothing))


class SyslogTests(SynchronousTestCase):
    """Logging to syslog without a journal."""

    def test_syslog(self) -> None:
        """Each line, including those of a traceback, has a priority and the service's name."""
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            raise SkipTest("needs root and unshare, for a private /dev/log")
        directory = Path(tempfile.mkdtemp(prefix="mufs-syslog-"))
        self.addCleanup(shutil.rmtree, directory)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
            syslog.bind(str(directory / "log"))
            (directory / "null").touch()
            syslog.settimeout(10)
            inside = (
                f"mount --bind /dev/null {directory}/null; mount --rbind {directory} /dev; "
                'exec "$@"'
            )
            subprocess.run(
                ["unshare", "--mount", "sh", "-ec", inside, "sh",
                 sys.executable, "-c", LOG_TO_SYSLOG],
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, check=True, timeout=60,
            )  # fmt: skip
            lines = [syslog.recv(65536).decode() for _ in range(4)]
        daemon = 3 << 3
        self.assertRegex(lines[0], rf"^<{daemon + 4}>.* mufs-client\[\d+\]: it rains")
        for line in lines[1:]:
            self.assertRegex(line, rf"^<{daemon + 3}>.* mufs-client\[\d+\]: ")
        self.assertIn("bad luck", lines[1])
