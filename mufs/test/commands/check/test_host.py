"""Findings about this host."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mufs.commands.check import host
from mufs.commands.check.finding import Level, ok
from mufs.communication.client.group_socket import RECEIVE_BUFFER
from mufs.filesystem.client.libfuse import NoLibfuse
from mufs.test.support.doubles import make_libfuse


class HostTests(SynchronousTestCase):
    """What this host needs."""

    def test_device(self) -> None:
        """A device that is missing or closed to this user is a problem, with what to type."""
        path = Path(self.mktemp())
        self.assertIn("modprobe fuse", host.fuse_device(str(path)).commands)
        path.mkdir()
        closed = host.fuse_device(str(path))
        self.assertIs(closed.level, Level.PROBLEM)
        self.assertIn("directory", closed.figure)

    def test_library(self) -> None:
        """The version that a client would use is told; none is a problem."""
        self.patch(host, "load", make_libfuse)
        self.assertEqual(host.fuse_library(), ok("libfuse", "3.9"))
        self.patch(host, "load", lambda: make_libfuse(major=2))
        self.assertIn("2.9; with libfuse 3", host.fuse_library().figure)

        def none() -> None:
            raise NoLibfuse("libfuse 3 is missing")

        self.patch(host, "load", none)
        self.assertIs(host.fuse_library().level, Level.PROBLEM)

    def test_fusermount(self) -> None:
        """A fusermount that does not run as root is of no use to others than root."""
        directory = Path(self.mktemp())
        directory.mkdir()
        self.patch(os, "environ", {"PATH": str(directory.absolute())})
        self.assertIs(host.fusermount().level, Level.PROBLEM)
        program = directory / "fusermount"
        program.touch()
        program.chmod(0o755)
        self.patch(os, "geteuid", lambda: 0)
        self.assertIs(host.fusermount().level, Level.OK)
        self.patch(os, "geteuid", lambda: 1000)
        self.assertEqual(host.fusermount().commands, (f"chmod u+s {program.absolute()}",))
        program.chmod(0o4755)
        self.assertIs(host.fusermount().level, Level.OK)

    def test_allow_other(self) -> None:
        """user_allow_other counts if it is a line, and no comment."""
        config = Path(self.mktemp())
        self.assertIs(host.allow_other(config).level, Level.WARNING)
        config.write_text("# mount_max = 1000\n#user_allow_other\n")
        self.assertIs(host.allow_other(config).level, Level.WARNING)
        config.write_text("mount_max = 1000\nuser_allow_other\n")
        self.assertIs(host.allow_other(config).level, Level.OK)

    def test_receive_buffer(self) -> None:
        """A small limit is a warning to whom it limits, and told to whom it does not."""
        limit = Path(self.mktemp())
        limit.write_text("212992\n")
        most = host.number(str(limit))
        small = host.receive_buffer(212992, most)
        self.assertIs(small.level, Level.WARNING)
        self.assertIn("208 KiB of the 16384", small.figure)
        self.assertEqual(small.commands, ("sysctl -w net.core.rmem_max=16777216",))
        self.assertIn("gets 208", host.receive_buffer(RECEIVE_BUFFER, most).figure)
        self.assertNotIn("gets", host.receive_buffer(RECEIVE_BUFFER, 1 << 30).figure)
        self.assertIsNone(host.number(str(limit) + ".missing"))
