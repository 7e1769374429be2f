"""Makes a bootable disk image of a directory, without loop devices: GRUB and one ext4 partition.

The same directory gives the same image, byte for byte: times and identifiers are fixed.
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
"""Offset of the partition in bytes. GRUB is between the boot sector and this."""
EPOCH = 1_700_000_000
"""The time of all files, in seconds since 1970."""
UUID = "6d554653-0000-4000-8000-000000000001"
GRUB = Path("/usr/lib/grub/i386-pc")
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "normal", "linux")
PROGRAMS = ("mke2fs", "debugfs", "grub-mkimage")
LINUX = 0x83
"""The partition's type."""
TIMES = ("ctime", "atime")
BOOTSTRAP = 440
"""Bytes of code in the boot sector."""


def lacking() -> list[str]:
    """What `write_disk` needs and is not installed."""
    found = [program for program in PROGRAMS if which(program) is None]
    return found if (GRUB / "boot.img").exists() else [*found, str(GRUB)]


def boot_sector(bootstrap: bytes, size: int) -> bytes:
    """A boot sector whose one active partition reaches to the end of a disk of `size` bytes."""
    unused = b"\xfe\xff\xff"  # cylinder, head and sector, which are not used any more
    first = PARTITION // SECTOR
    entry = struct.pack("<B3sB3sII", 0x80, unused, LINUX, unused, first, size // SECTOR - first)
    head = bootstrap[:BOOTSTRAP].ljust(BOOTSTRAP, b"\0")
    return head + b"mUFS\0\0" + entry.ljust(64, b"\0") + b"\x55\xaa"


def write_disk(tree: Path, path: Path, size: int) -> None:
    """Make an image of `size` bytes that boots as /boot/grub/grub.cfg in `tree` says."""
    with open(path, "wb") as image:
        image.write(boot_sector((GRUB / "boot.img").read_bytes(), size))
        core = _grub()
        assert SECTOR + len(core) <= PARTITION
        image.write(core)
        image.truncate(size)
    _write_file_system(tree, path, (size - PARTITION) // 4096)


def _grub() -> bytes:
    """GRUB's core image, which reads its configuration from the partition."""
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
    # mke2fs copies ctimes, which cannot be set in the directory.
    lines = "".join(
        f'sif "/{each.relative_to(tree)}" {field} @{EPOCH}\n' for each in paths for field in TIMES
    )
    run("debugfs", "-w", "-f", "/dev/stdin", f"{path}?offset={PARTITION}", given=lines)


def run(*command: str, given: str = "", directory: Path | None = None) -> str:
    """Run a program with the clock that all files have, and return its output.

    Raises `LabError` if it fails.
    """
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
