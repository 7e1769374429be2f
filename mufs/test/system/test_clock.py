"""The clocks of hosts: set forward or back during reads, and different on each host."""

from __future__ import annotations

from pathlib import Path

from mufs.test.support.lab import SERVER, Lab
from mufs.test.support.processes import Reader
from mufs.test.system.test_network import MIB, LabTestCase

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
"""The library that sets the time of day for single processes."""

DAY = 24 * 3600


class TimeOfDayTests(LabTestCase):
    """The time of day is changed while images are read."""

    if FAKETIME is None:
        skip = "needs libfaketime"

    def set_time(self, lab: Lab, seconds: int) -> None:
        """Set the time of day of all processes off by C{seconds}."""
        new = lab.directory / "time.new"
        new.write_text(f"{seconds:+d}")
        new.replace(lab.directory / "time")

    def start(self) -> tuple[Lab, list[Reader]]:
        """Start a server and two hosts with an adjustable time of day, and a read on each host."""
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
        """Set the time; assert that the reads end right, without errors or reconnections."""
        self.set_time(lab, seconds)
        self.assert_right([reader.result() for reader in readers])
        for client in self.clients:
            self.assertTrue(client.status()["connected"])
            self.assertEqual(client.output.count("connected to the server"), 1)

    def test_forward(self) -> None:
        """Setting the clock a day forward causes no timeouts."""
        self.assert_unmoved(*self.start(), DAY)

    def test_back(self) -> None:
        """Setting the clock a day back delays neither reads nor the server's packets."""
        self.assert_unmoved(*self.start(), -DAY)


class UptimeTests(LabTestCase):
    """Hosts with different uptimes."""

    def test_other_uptime(self) -> None:
        """A host whose monotonic clock is a year ahead of the server's reads right."""
        lab = self.make_lab(2, 4 * MIB + 3)
        lab.before["host1"] = ["unshare", "--time", "--monotonic=31536000", "--boottime=31536000"]
        lab.start_server()
        lab.start_clients()
        self.read_all(lab)
