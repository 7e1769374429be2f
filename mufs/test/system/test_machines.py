"""The images and virtual machines of the experiment: see docs/experiments.md."""

from __future__ import annotations

import struct
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.lab import Lab, why_unavailable
from mufs.test.support.netns import LabError

NO_BENCH = None if find_spec("bench") else "needs the sources of the bench"
NO_DISK = NO_MACHINE = NO_TRACER = NO_BENCH
if NO_BENCH is None:
    from bench.experiment import disk, machines
    from bench.experiment.images import GuestImage
    from bench.experiment.live import PLACES, Plan, boot_all, lone_boot
    from bench.experiment.sampling import untraceable
    from bench.systems import Mufs

    if lacks := disk.lacking():
        NO_DISK = f"needs {', '.join(lacks)}"
    if lacks := machines.lacking():
        NO_MACHINE = f"needs {', '.join(lacks)}"
    NO_TRACER = untraceable()

SUM = "0123456789abcdef" * 4
OTHER_SUM = "f" * 64
MIB = 1 << 20


class DiskTests(SynchronousTestCase):
    """Disk images."""

    skip = NO_BENCH

    def test_partition_table(self) -> None:
        """There is one active Linux partition, from 1 MiB to the end of the disk."""
        sector = disk.boot_sector(b"\xaa" * 512, 64 * MIB)
        self.assertEqual((len(sector), sector[:440], sector[510:]), (512, b"\xaa" * 440, b"U\xaa"))
        active, kind, begin, length = struct.unpack("<B3xB3xII", sector[446:462])
        self.assertEqual((active, kind), (0x80, 0x83))
        self.assertEqual((begin * 512, (begin + length) * 512), (MIB, 64 * MIB))
        self.assertEqual(sector[462:510], bytes(48))

    def test_same_again(self) -> None:
        """The same directory gives the same image, regardless of the times of its files."""
        images = []
        for number in range(2):
            tree = Path(self.mktemp())
            (tree / "boot").mkdir(parents=True)
            (tree / "boot" / "one").write_bytes(b"1" * 5000)
            (tree / "link").symlink_to("boot/one")
            path = tree.with_suffix(f".img{number}")
            disk.write_disk(tree, path, 8 * MIB)
            images.append(path.read_bytes())
        self.assertEqual(len(images[0]), 8 * MIB)
        self.assertTrue(images[0] == images[1])
        self.assertIn(b"GRUB", images[0][:512])
        partition = f"{path}?offset={disk.PARTITION}"
        self.assertEqual(disk.run("debugfs", "-R", "cat /boot/one", partition), "1" * 5000)

    if NO_DISK:
        test_same_again.skip = NO_DISK  # type: ignore[attr-defined]


class ConsoleTests(SynchronousTestCase):
    """The console line of a guest at the end of its boot."""

    skip = NO_BENCH

    def test_booted(self) -> None:
        """The line is found among others, with the line ends of a serial console."""
        console = f"[  1.2] vda: vda1\r\nguest login: \r\nBOOTED {SUM}\r\n[  1.3] Power down\r\n"
        self.assertEqual(machines.booted(console), SUM)

    def test_not_yet(self) -> None:
        """An incomplete line is ignored."""
        for text in ("", "booting\r\n", "BOOTED ", f"x\r\nBOOTED {SUM[:40]}", f"x BOOTED {SUM}"):
            self.assertIsNone(machines.booted(text))


class CommandTests(SynchronousTestCase):
    """The command line of qemu."""

    skip = NO_BENCH

    def test_software_emulation(self) -> None:
        """Without KVM the CPU is emulated; the disk bypasses the page cache only on request."""
        words = machines.command(
            "tcg", 256, drive="file=x,format=qcow2", console=Path("/c"), cache="none"
        )
        self.assertEqual(words[words.index("-accel") + 1], "tcg,thread=multi")
        self.assertEqual(words[words.index("-m") + 1], "256")
        self.assertEqual(words[words.index("-serial") + 1], "file:/c")
        self.assertIn("file=x,format=qcow2,if=none,id=disk,cache=none", words)
        self.assertIn("virtio-blk-pci,drive=disk,opt_io_size=65536", words)

    def test_kvm(self) -> None:
        """With KVM only the accelerator differs."""
        kvm = machines.command("kvm", 256, drive="file=x", console=Path("/c"), cache="writeback")
        tcg = machines.command("tcg", 256, drive="file=x", console=Path("/c"), cache="writeback")
        self.assertEqual(
            [pair for pair in zip(kvm, tcg, strict=True) if pair[0] != pair[1]],
            [("kvm", "tcg,thread=multi")],
        )


class MachineTests(SynchronousTestCase):
    """Machines that boot from a disk that prints a given text on the console."""

    skip = NO_MACHINE or why_unavailable()

    def boot(self, text: str, timeout: float = 60.0) -> float:
        """Boot from a disk on a mount of mUFS, and return the seconds that it took."""
        with Lab(1) as lab:
            path = lab.images / "disk.img"
            path.write_bytes(machines.speaking_disk(text.encode()))
            lab.start_server()
            lab.start_client("host1")
            image = GuestImage(path, path.stat().st_size, SUM, 64, timeout)
            mounted = lab.mount_point("host1") / "disk.img"
            machine = machines.Machine(lab, "host1", "vm1", base=mounted, image=image)
            hardware = machines.Hardware("tcg")
            machines.boot([machine], hardware, start=monotonic(), timeout=timeout)
            machine.finish()
            return machine.seconds

    def test_right(self) -> None:
        """A machine has booted when it prints the right checksum."""
        self.assertGreater(self.boot(f"\r\nBOOTED {SUM}\r\n"), 0)

    def test_wrong(self) -> None:
        """A wrong checksum is an error that shows both."""
        error = self.assertRaises(LabError, self.boot, f"\r\nBOOTED {OTHER_SUM}\r\n")
        self.assertIn(OTHER_SUM, str(error))
        self.assertIn(SUM, str(error))

    def test_ended(self) -> None:
        """A machine that ends without a checksum is an error that shows its last output."""
        error = self.assertRaises(LabError, self.boot, "\r\nKernel panic\r\n")
        self.assertIn("ended early", str(error))
        self.assertIn("Kernel panic", str(error))

    def test_probe(self) -> None:
        """A guest comes through the firmware in software emulation, and reads through it."""
        self.assertIsNotNone(machines.probe("tcg", 60.0))


class AcceleratorTests(SynchronousTestCase):
    """The choice between KVM and software emulation."""

    skip = NO_BENCH

    def choose(self, kvm: float | None) -> tuple[str, str]:
        """Choose where a guest takes a second in software emulation, and this long under KVM."""

        def probe(accelerator: str, timeout: float) -> float | None:
            taken = 1.0 if accelerator == "tcg" else kvm
            return taken if taken is not None and taken < timeout else None

        self.patch(machines, "probe", probe)
        self.patch(Path, "exists", lambda path: True)
        return machines.choose_accelerator()

    def test_kvm(self) -> None:
        """KVM is used if a guest comes through the firmware about as fast as in emulation."""
        self.assertEqual(self.choose(1.9), ("kvm", ""))

    def test_slow(self) -> None:
        """KVM that hangs in the firmware, or is far slower there, is not used, which is said."""
        for kvm in (None, 4.0):
            accelerator, reason = self.choose(kvm)
            self.assertEqual(accelerator, "tcg")
            self.assertIn("firmware in 2.0 s", reason)

    def test_no_device(self) -> None:
        """Without the device nothing is tried."""
        self.patch(machines, "probe", None)
        self.patch(Path, "exists", lambda path: False)
        self.assertEqual(machines.choose_accelerator(), ("tcg", "no /dev/kvm"))


class LiveTests(SynchronousTestCase):
    """A whole run, with a disk of one sector that prints what a guest does."""

    skip = NO_MACHINE or NO_TRACER or why_unavailable()

    def test_all(self) -> None:
        """Machines boot on all hosts; the reads of each host and of the server are reported."""
        path = Path(self.mktemp()).absolute()
        path.write_bytes(machines.speaking_disk(f"\r\nBOOTED {SUM}\r\n".encode()))
        plan = Plan(
            "none", GuestImage(path, path.stat().st_size, SUM, 64, 60.0), machines.Hardware("tcg")
        )
        outcome = boot_all(plan, Mufs)
        self.assertTrue(outcome.right)
        self.assertEqual([host.name for host in outcome.hosts], [name for name, _ in PLACES])
        for host in outcome.hosts:
            self.assertGreater(host.reads, 0)
            self.assertEqual(host.hits + host.joined + host.misses, host.reads)
        self.assertGreater(outcome.server_reads, 0)
        # The rest of what they read is a hole.
        self.assertGreater(outcome.server_read_bytes, 0)
        self.assertEqual(lone_boot(plan).unique_bytes, outcome.unique_bytes)
