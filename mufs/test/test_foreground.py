"""The commands of the services."""

import signal
import subprocess
import sys
from collections.abc import Callable

from twisted.scripts import twistd
from twisted.trial.unittest import SynchronousTestCase

from mufs import foreground


class CommandTests(SynchronousTestCase):
    """What twistd is given."""

    def run_command(self, command: Callable[[], None], *arguments: str) -> list[str]:
        """The command line that twistd finds."""
        found: list[str] = []
        self.patch(twistd, "run", lambda: found.extend(sys.argv))
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        self.patch(sys, "argv", ["/usr/bin/it", *arguments])
        command()
        return found

    def test_server(self) -> None:
        """The options are those of the service, after twistd's."""
        found = self.run_command(foreground.server, "--images", "/srv", "--help")
        twistd = ["--nodaemon", "--pidfile="]
        self.assertEqual(found[1:], [*twistd, "mufs-server", "--images", "/srv", "--help"])

    def test_client(self) -> None:
        """The same goes for the client, also without options."""
        found = self.run_command(foreground.client)
        self.assertEqual(found[1:], ["--nodaemon", "--pidfile=", "mufs-client"])

    def test_interrupted(self) -> None:
        """An interrupt while modules are imported ends the command with one line."""
        for command in ("server", "client"):
            program = (
                "import os, signal, sys\n"
                "class Importer:\n"
                "    def find_spec(self, name, *_):\n"
                "        if name == 'twisted.scripts.twistd':\n"
                "            os.kill(os.getpid(), signal.SIGINT)\n"
                "sys.meta_path.insert(0, Importer())\n"
                f"from mufs.foreground import {command}; {command}()"
            )
            done = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
            )
            self.assertEqual(done.stderr, f"mufs-{command}: interrupted\n")
            self.assertEqual(done.returncode, 130)
