"""The systemd units in etc/."""

import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

ETC = Path(__file__).parents[2] / "etc"


class UnitTests(SynchronousTestCase):
    """What systemd itself says about the units."""

    def verify(self, unit: str, name: str) -> None:
        """Have systemd-analyze verify the unit, under the name that it would be started by."""
        if shutil.which("systemd-analyze") is None:
            raise SkipTest("needs systemd-analyze")
        if not ETC.is_dir():
            raise SkipTest("needs the checkout")
        directory = Path(self.mktemp())
        directory.mkdir()
        shutil.copy(ETC / unit, directory / name)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(directory / name)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        # It loads the units of this machine too, and says what it thinks of them.
        complaints = [line for line in done.stdout.splitlines() if "mufs" in line]
        self.assertEqual(complaints, [])
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_server(self) -> None:
        """systemd finds nothing wrong with the unit of the server."""
        self.verify("mufs-server.service", "mufs-server.service")

    def test_client(self) -> None:
        """systemd finds nothing wrong with the unit of the client at /mnt/images."""
        self.verify("mufs-client@.service", "mufs-client@mnt-images.service")

    def test_client_with_escaped_path(self) -> None:
        """systemd finds nothing wrong with the unit of a client whose path needs escapes."""
        self.verify("mufs-client@.service", r"mufs-client@mnt-vm\x2dimages.service")
