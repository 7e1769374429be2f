"""The commands of the services."""

import sys
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from mufs import foreground


class CommandTests(SynchronousTestCase):
    """What twistd is given."""

    def run_command(self, command: Callable[[], None], *arguments: str) -> list[str]:
        """The command line that twistd finds."""
        found: list[str] = []
        self.patch(foreground, "run", lambda: found.extend(sys.argv))
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
