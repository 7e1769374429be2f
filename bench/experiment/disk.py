"""A bootable disk image of a directory, without loop devices: GRUB, one partition, one ext4.

Of the same directory the same image is made, byte for byte: times and identifiers are fixed.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from pathlib import Path
from shutil import which

from mufs.test.support.netns import LabError

SECTOR = 512
PARTITION = 1 << 20
"""Where the partition begins; GRUB lies between the boot sector and this."""
EPOCH = 1_700_000_000
"""The time of all files, in seconds."""
UUID = "6d554653-0000-4000-8000-000000000001"
GRUB = Path("/usr/lib/grub/i386-pc")
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "normal", "linux")
PROGRAMS = ("mke2fs", "debugfs", "grub-mkimage")
LINUX = 0x83
"""The partition's type."""
TIMES = ("ctime", "atime")
BOOTSTRAP = 440
"""Bytes of program in the boot sector."""


def lacking() -> list[str]:
    """What is not installed of what `write_disk` needs."""
    found = [program for program in PROGRAMS if which(program) is None]
    return found if (GRUB / "boot.img").exists() else [*found, str(GRUB)]


def boot_sector(bootstrap: bytes, size: int) -> bytes:
    """A boot sector whose one partition, an active one, reaches to the end of a disk of `size`."""
    unused = b"\xfe\xff\xff"  # cylinder, head and sector: who reads these today takes the numbers
    first = PARTITION // SECTOR
    entry = struct.pack("<B3sB3sII", 0x80, unused, LINUX, unused, first, size // SECTOR - first)
    head = bootstrap[:BOOTSTRAP].ljust(BOOTSTRAP, b"\0")
    return head + b"mUFS\0\0" + entry.ljust(64, b"\0") + b"\x55\xaa"


def write_disk(tree: Path, path: Path, size: int) -> None:
    """Make an image of so many bytes that boots as `tree`'s /boot/grub/grub.cfg says."""
    with open(path, "wb") as image:
        image.write(boot_sector((GRUB / "boot.img").read_bytes(), size))
        core = _grub()
        assert SECTOR + len(core) <= PARTITION
        image.write(core)
        image.truncate(size)
    _write_file_system(tree, path, (size - PARTITION) // 4096)


def _grub() -> bytes:
    """GRUB itself, as it lies behind the boot sector: it finds its file by the partition."""
    with tempfile.NamedTemporaryFile(prefix="mufs-grub-") as core:
        run(
            *("grub-mkimage", "-O", "i386-pc", "-d", str(GRUB), "-o", core.name),
            *("-p", "(hd0,msdos1)/boot/grub", *GRUB_MODULES),
        )
        return Path(core.name).read_bytes()


def _write_file_system(tree: Path, path: Path, blocks: int) -> None:
    paths = [tree, *sorted(tree.rglob("*"))]
    for each in paths:
        os.utime(each, (EPOCH, EPOCH), follow_symlinks=False)
    fixed = f"offset={PARTITION},hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0"
    run(
        *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^metadata_csum_seed"),
        *("-U", UUID, "-E", fixed, "-d", str(tree), str(path), str(blocks)),
    )
    # mke2fs takes the times of the inodes' changes, and these cannot be set in the directory.
    lines = "".join(
        f'sif "/{each.relative_to(tree)}" {field} @{EPOCH}\n' for each in paths for field in TIMES
    )
    run("debugfs", "-w", "-f", "/dev/stdin", f"{path}?offset={PARTITION}", given=lines)


def run(*command: str, given: str = "", directory: Path | None = None) -> str:
    """Run a program to its end, at the time that all files have, and return its output."""
    environment = {
        **os.environ,
        "E2FSPROGS_FAKE_TIME": str(EPOCH),
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        command, cwd=directory, env=environment, input=given, capture_output=True, text=True
    )
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout
