"""The storage pool and the machine that docs/operations/virtual-machines.md shows for libvirt."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.processes import CHECKOUT

PAGE = CHECKOUT / "docs" / "operations" / "virtual-machines.md"


def why_unavailable() -> str | None:
    """Return why this cannot be tested here, or None if it can."""
    if not PAGE.exists():
        return "needs the checkout"
    return None if shutil.which("virsh") else "needs virsh"


class LibvirtTests(SynchronousTestCase):
    """The XML of the page, given to libvirt's test driver, which needs no daemon."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Write the pool and the machine into files."""
        self.pool, self.machine = Path(self.mktemp()), Path(self.mktemp())
        pool, machine = re.findall(r"^```xml\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
        self.pool.write_text(pool)
        self.machine.write_text(machine)

    def virsh(self, *commands: str) -> subprocess.CompletedProcess[str]:
        """Run commands in one session: what they define ends with it."""
        return subprocess.run(
            ["virsh", "--quiet", "-c", "test:///default", "; ".join(commands)],
            capture_output=True,
            text=True,
            timeout=60,
        )

    def test_valid(self) -> None:
        """Both fit libvirt's schema; the pool starts, and the machine has an overlay."""
        done = self.virsh(
            f"pool-define --validate {self.pool}",
            "pool-start images",
            f"define --validate {self.machine}",
            "start vm1",
            "domblklist vm1",
            "pool-list",
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"vda +/var/lib/libvirt/images/vm1.qcow2")
        self.assertRegex(done.stdout, r"images +active")

    def test_wrong(self) -> None:
        """An attribute that libvirt does not know is noticed."""
        self.machine.write_text(self.machine.read_text().replace("rerror_policy", "no_such"))
        done = self.virsh(f"define --validate {self.machine}")
        self.assertIn("failed to validate", done.stderr)
