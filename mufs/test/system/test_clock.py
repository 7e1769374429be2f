"""What the clocks of a host do to mUFS: a day forward, a day back, and another one at each host."""

from __future__ import annotations

from pathlib import Path

from mufs.test.support.lab import SERVER, Lab
from mufs.test.support.processes import Reader
from mufs.test.system.test_network import MIB, LabTestCase

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
"""What lets a test set the time of day of single processes, and leaves the machine's alone."""

DAY = 24 * 3600


class TimeOfDayTests(LabTestCase):
    """The time of day is set while images are read."""

    if FAKETIME is None:
        skip = "needs libfaketime"

    def set_time(self, lab: Lab, seconds: int) -> None:
        """Set the time of day of all processes so far off."""
        new = lab.directory / "time.new"
        new.write_text(f"{seconds:+d}")
        new.replace(lab.directory / "time")

    def start(self) -> tuple[Lab, list[Reader]]:
        """A server and two hosts, with a time of day that can be set, in the middle of a read."""
        lab = self.make_lab(2, 4 * MIB + 4097, rate=50)
        self.set_time(lab, 0)
        faked = ["env", f"LD_PRELOAD={FAKETIME}", f"FAKETIME_TIMESTAMP_FILE={lab.directory}/time"]
        faked += ["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]
        lab.before = dict.fromkeys([SERVER, *lab.hosts], faked)
        lab.start_server()
        self.clients = lab.start_clients()
        lab.network.set_loss("host2", 50)
        return lab, self.start_reading(lab)

    def assert_unmoved(self, lab: Lab, readers: list[Reader], seconds: int) -> None:
        """The reads end right, without an error, and within the connections that there were."""
        self.set_time(lab, seconds)
        self.assert_right([reader.result() for reader in readers])
        for client in self.clients:
            self.assertTrue(client.status()["connected"])
            self.assertEqual(client.output.count("connected to the server"), 1)

    def test_forward(self) -> None:
        """A day forward ends no read and no connection early."""
        self.assert_unmoved(*self.start(), DAY)

    def test_back(self) -> None:
        """A day back leaves no read, and no packet of the server, waiting for the day to pass."""
        self.assert_unmoved(*self.start(), -DAY)


class UptimeTests(LabTestCase):
    """Hosts do not compare their clocks."""

    def test_other_uptime(self) -> None:
        """A host whose clock began a year before the server's reads right."""
        lab = self.make_lab(2, 4 * MIB + 3)
        lab.before["host1"] = ["unshare", "--time", "--monotonic=31536000", "--boottime=31536000"]
        lab.start_server()
        lab.start_clients()
        self.read_all(lab)
