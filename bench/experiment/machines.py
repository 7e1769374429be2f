"""Virtual machines that boot from an image on a mount, observed through their serial consoles."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shutil import which

import attrs

from bench.experiment.disk import run
from bench.experiment.images import GuestImage
from mufs.test.support.lab import Lab
from mufs.test.support.netns import LabError

QEMU = "qemu-system-x86_64"
PROGRAMS = (QEMU, "qemu-img")
ACCELERATORS = {"kvm": "kvm", "tcg": "tcg,thread=multi"}
PROBE_TIMEOUT = 30.0
"""Seconds within which a guest has to come through the firmware in software emulation."""
MAX_KVM_DELAY = 1.0
"""Seconds that it may take longer under KVM: a nested KVM may take forty times as long for the
firmware as software emulation, while it runs a guest of a few instructions at once."""
GREETING = b"here"
SPEAK = bytes.fromhex(
    "fc 31c0 8ed8 b92000"  # cld; xor ax, ax; mov ds, ax; mov cx, 32
    "51 b442 be307c cd13 59 7210 e2f3"  # read: as below; jc end; loop read
    "be407c baf803"  # mov si, 0x7c40; mov dx, 0x3f8
    "ac 84c0 7403 ee ebf8"  # next: lodsb; test al, al; jz end; out dx, al; jmp next
    "b0fe e664 f4"  # end: mov al, 0xfe; out 0x64, al; hlt
)
"""Has the firmware read the first 32 KiB of the disk 32 times (int 0x13, ah 0x42), writes the text
at byte 64, up to a zero, to the first serial port, and resets the machine."""
FIRST_SECTORS = bytes.fromhex("1000 4000 0000 0010 0000000000000000")
"""What the firmware reads, at byte 48: 64 sectors from the first on, to 0x1000:0."""
READ_AHEAD = 128
"""KiB that guests' kernels read ahead by default. Without a word from the disk, later ones than
Linux 6.12 take 8192 for a virtio disk."""
CONSOLE_CHECK_INTERVAL = 0.1
"""Seconds."""
BOOTED = re.compile(r"^BOOTED ([0-9a-f]{64})\s*$", re.MULTILINE)


@attrs.frozen
class Hardware:
    """What the machines are made of."""

    accelerator: str
    cache: str = "none"
    """The cache mode of their disks.

    "none" is O_DIRECT: all reads of guests reach the mount. With "writeback" the host's page cache
    serves what both machines of a host read.
    """
    read_ahead: int = READ_AHEAD
    """KiB that the guests' kernels read ahead."""


def lacking() -> list[str]:
    """Programs that machines need and that are not installed."""
    return [program for program in PROGRAMS if which(program) is None]


def command(
    accelerator: str,
    memory: int,
    *,
    drive: str,
    console: Path,
    cache: str = "none",
    read_ahead: int = READ_AHEAD,
) -> list[str]:
    """The command line of a machine with one disk and no network.

    `drive` has qemu's options for the disk's file. With `cache` "none" the host's page cache is
    bypassed, with "writeback" it is used. The guest's kernel reads `read_ahead` KiB ahead: twice
    the disk's optimal transfer, but at least 128 KiB.
    """
    device = f"virtio-blk-pci,drive=disk,opt_io_size={read_ahead * 1024 // 2}"
    return [
        *(QEMU, "-accel", ACCELERATORS[accelerator], "-cpu", "max", "-smp", "1", "-m", str(memory)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", f"file:{console}", "-drive", f"{drive},if=none,id=disk,cache={cache}"),
        *("-device", device),
    ]


def speaking_disk(text: bytes) -> bytes:
    """A small disk with a guest that reads it, prints a text on its console and ends."""
    return (
        (SPEAK.ljust(48, b"\0") + FIRST_SECTORS + text).ljust(510, b"\0")
        + b"\x55\xaa"
        + bytes(1 << 20)
    )


def probe(accelerator: str, timeout: float) -> float | None:
    """Seconds in which a guest comes through the firmware and reads through it; None if it fails.

    The device file of KVM does not prove that it does, nor does a guest of a few instructions.
    """
    with tempfile.TemporaryDirectory(prefix="mufs-probe-") as directory:
        console, disk = Path(directory) / "console", Path(directory) / "disk"
        disk.write_bytes(speaking_disk(GREETING))
        words = command(
            accelerator, 32, drive=f"file={disk},format=raw", console=console, cache="writeback"
        )
        quiet = subprocess.DEVNULL
        begin = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(words, stdin=quiet, stdout=quiet, stderr=quiet, timeout=timeout)
            if console.exists() and GREETING in console.read_bytes():
                return time.monotonic() - begin
        return None


def choose_accelerator() -> tuple[str, str]:
    """The faster accelerator for firmware and guests, and why it is not KVM, if so."""
    if not Path("/dev/kvm").exists():
        return "tcg", "no /dev/kvm"
    emulated = probe("tcg", PROBE_TIMEOUT) or 0.0
    timeout = emulated + MAX_KVM_DELAY
    if probe("kvm", timeout) is None:
        return "tcg", f"under KVM a guest does not come through the firmware in {timeout:.1f} s"
    return "kvm", ""


def booted(console: str) -> str | None:
    """The sum that a guest printed at the end of its boot, or None."""
    said = BOOTED.search(console)
    return said[1] if said else None


class Machine:
    """A machine on a host of a lab, whose disk is an overlay over the image.

    It ends with the lab at the latest.
    """

    def __init__(self, lab: Lab, host: str, name: str, *, base: Path, image: GuestImage) -> None:
        self.host = host
        self.name = name
        self.seconds = 0.0
        """Seconds from the start until the guest had printed its sum; 0 before that."""
        self._lab = lab
        self._image = image
        self._console = lab.directory / f"{name}-console.log"
        self._overlay = lab.directory / f"{name}.qcow2"
        # Without the size, qemu-img would read the image here, before the machine starts.
        run(
            *("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", str(base)),
            *(str(self._overlay), str(image.size)),
        )

    def start(self, hardware: Hardware, start: float) -> None:
        """Switch it on; times are counted from `start`, on the monotonic clock."""
        words = command(
            hardware.accelerator,
            self._image.memory,
            drive=f"file={self._overlay},format=qcow2",
            console=self._console,
            cache=hardware.cache,
            read_ahead=hardware.read_ahead,
        )
        self._start = start
        self._program = self._lab.start_program(self.name, self.host, words)

    @property
    def console(self) -> str:
        """Everything that was written on it so far."""
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    def check_booted(self) -> bool:
        """Whether it has booted; raises `LabError` if it ended early or read wrong bytes."""
        running = self._program.running
        said = booted(self.console)
        if said is None:
            if not running:
                raise LabError(f"{self.name} ended early: {self._program.output}{self._tail()}")
            return False
        if not self.seconds:
            self.seconds = time.monotonic() - self._start
        if said != self._image.sum:
            raise LabError(f"{self.name} read wrong bytes: {said}, not {self._image.sum}")
        return True

    def _tail(self) -> str:
        return self.console[-1000:]

    def timeout_message(self, timeout: float) -> str:
        """The error message if it has not booted in time."""
        return f"{self.name} has not booted in {timeout:g} s: {self._tail()}"

    def finish(self) -> None:
        """Wait until it has switched itself off, or kill it."""
        try:
            self._program.wait(30)
        except LabError:
            self._program.kill()


def boot(machines: Sequence[Machine], hardware: Hardware, *, start: float, timeout: float) -> None:
    """Switch all on at one moment, and wait until all have booted.

    Raises `LabError` after `timeout` seconds.
    """
    time.sleep(max(0.0, start - time.monotonic()))
    for machine in machines:
        machine.start(hardware, start)
    waited = list(machines)
    while waited := [machine for machine in waited if not machine.check_booted()]:
        if time.monotonic() > start + timeout:
            raise LabError("\n".join(machine.timeout_message(timeout) for machine in waited))
        time.sleep(CONSOLE_CHECK_INTERVAL)
