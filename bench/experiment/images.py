"""Makes the images that the experiment's virtual machines boot from, of Debian packages.

An image is made once and kept in build/experiment until its recipe changes. At the end of its boot
a guest prints the SHA-256 of what it read, `GuestImage.sum`, on its console.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from shutil import which

import attrs

from bench.experiment.disk import lacking as disk_lacks
from bench.experiment.disk import run, write_disk
from mufs.test.support.netns import LabError

HERE = Path(__file__).parent
GUEST = HERE / "guest"
BUILD = HERE.parents[1] / "build" / "experiment"
RELEASE = "bookworm"
KERNEL = "linux-image-cloud-amd64"
MIB = 1 << 20
MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev")
DRIVERS = ("virtio_pci", "virtio_blk")
PACKAGES = ("systemd-sysv", "udev", "dbus", "openssh-server", "cron", KERNEL, "initramfs-tools")
"""Packages of a Debian guest beyond the base system."""


@attrs.frozen
class GuestImage:
    """An image, and what a guest that boots from it has to print."""

    path: Path
    size: int
    sum: str
    """The SHA-256 of what the guest reads at the end of its boot, in hexadecimal."""
    memory: int
    """MiB that a guest needs."""
    timeout: float
    """Seconds for a boot, when several guests boot under software emulation on two cores."""


@attrs.frozen
class Scale:
    """One of the two images."""

    name: str
    size: int
    memory: int
    timeout: float
    fill: Callable[[Path], None]
    """Makes the image's files, except GRUB's configuration and the list of files to read."""
    read: tuple[str, ...]
    """Directories whose files a guest reads at the end of its boot."""
    root_options: str
    """Options with which the kernel mounts the partition."""
    programs: tuple[str, ...]
    """Programs that making it needs, besides those of `write_disk`."""


def _small(tree: Path) -> None:
    """A kernel, busybox, and files of random bytes, from some KiB to 2 MiB."""
    for name in ("bin", "boot", "data", "dev", "etc", "proc"):
        (tree / name).mkdir()
    with tempfile.TemporaryDirectory(prefix="mufs-kernel-") as directory:
        kernel = _unpack_kernel(Path(directory))
        shutil.copy(next(kernel.glob("boot/vmlinuz-*")), tree / "vmlinuz")
        _write_initramfs(kernel, tree / "initrd.img")
    _install_busybox(tree)
    shutil.copy(GUEST / "check", tree / "bin" / "check")
    source = random.Random(1)
    for number in range(64):
        size = source.choice((4, 16, 64, 256, 512, 1024, 2048)) * 1024
        (tree / "data" / f"file{number:02}").write_bytes(source.randbytes(size))


def _unpack_kernel(directory: Path) -> Path:
    """Download and unpack Debian's kernel for virtual machines, without installing it."""
    depends = run("apt-cache", "depends", "--important", KERNEL).split()
    packages = [word for word in depends if re.match(r"linux-image-\d", word)]
    if not packages:
        raise LabError(f"apt does not know {KERNEL} here: apt-get update")
    download = ("apt-get", "download", "-o", "APT::Sandbox::User=root")
    run(*download, packages[0], directory=directory)
    kernel = directory / "kernel"
    run("dpkg-deb", "-x", str(next(directory.glob("*.deb"))), str(kernel))
    return kernel


def _install_busybox(tree: Path) -> None:
    """Install busybox, with a link to it for each of its programs."""
    busybox = which("busybox")
    assert busybox is not None
    (tree / "bin").mkdir(exist_ok=True)
    shutil.copy(busybox, tree / "bin" / "busybox")
    for program in run(busybox, "--list").split():
        if program != "busybox":
            os.symlink("busybox", tree / "bin" / program)


def _write_initramfs(kernel: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="mufs-initramfs-") as directory:
        tree = Path(directory)
        for name in ("dev", "root"):
            (tree / name).mkdir()
        _install_busybox(tree)
        for module in (*MODULES, *DRIVERS):
            shutil.copy(next(kernel.glob(f"**/{module}.ko")), tree)
        shutil.copy(GUEST / "initramfs-init", tree / "init")
        fixed = "find . -exec touch -h -d @$SOURCE_DATE_EPOCH {} + && find . | LC_ALL=C sort |"
        pack = "cpio --quiet --reproducible -R 0:0 -o -H newc | gzip -n"
        run("sh", "-c", f"cd '{tree}' && {fixed} {pack} >'{path}'")


def _paper(tree: Path) -> None:
    """A Debian server with systemd."""
    packages = ",".join(PACKAGES)
    kind = ("--mode=root", "--variant=minbase", f"--include={packages}")
    run("mmdebstrap", *kind, RELEASE, str(tree))
    for key in (tree / "etc" / "ssh").glob("ssh_host_*"):
        key.unlink()
    shutil.copy(GUEST / "check", tree / "bin" / "check")
    units = tree / "etc" / "systemd" / "system"
    shutil.copy(GUEST / "check.service", units)
    (units / "ssh.service.d").mkdir()
    shutil.copy(GUEST / "ssh-key.conf", units / "ssh.service.d")
    wants = units / "multi-user.target.wants" / "check.service"
    wants.symlink_to("/etc/systemd/system/check.service")
    (tree / "etc" / "hostname").write_text("guest\n")
    for old in ("initrd.img.old", "vmlinuz.old"):
        (tree / old).unlink(missing_ok=True)


SMALL = Scale(
    name="small",
    size=64 * MIB,
    memory=256,
    timeout=300.0,
    fill=_small,
    read=("data",),
    root_options="ro",
    programs=("apt-cache", "apt-get", "dpkg-deb", "busybox", "cpio", "gzip"),
)
PAPER = Scale(
    name="paper",
    size=1024 * MIB,
    memory=512,
    timeout=1800.0,
    fill=_paper,
    read=("usr/bin", "usr/lib/x86_64-linux-gnu"),
    root_options="rw",
    programs=("mmdebstrap",),
)
SCALES = {scale.name: scale for scale in (SMALL, PAPER)}


def lacking(name: str) -> list[str]:
    """What making this image needs and is not installed; nothing if the image exists."""
    scale = SCALES[name]
    if _paths(scale)[0].exists():
        return []
    return [*disk_lacks(), *(program for program in scale.programs if which(program) is None)]


def _paths(scale: Scale) -> tuple[Path, Path]:
    """The files of the image and of its sum. The name depends on the recipe."""
    recipe = hashlib.sha256()
    for path in (HERE / "images.py", HERE / "disk.py", *sorted(GUEST.iterdir())):
        recipe.update(path.read_bytes())
    stem = BUILD / f"{scale.name}-{recipe.hexdigest()[:12]}"
    return stem.with_suffix(".img"), stem.with_suffix(".json")


def _finish(tree: Path, scale: Scale) -> str:
    """Add GRUB's configuration and the list of files to read; return the files' SHA-256."""
    grub = tree / "boot" / "grub"
    grub.mkdir(parents=True, exist_ok=True)
    text = (GUEST / "grub.cfg").read_text()
    (grub / "grub.cfg").write_text(text.replace("ROOT_OPTIONS", scale.root_options))
    files = [
        path
        for directory in scale.read
        for path in sorted((tree / directory).iterdir())
        if path.is_file() and not path.is_symlink()
    ]
    names = "".join(f"/{path.relative_to(tree)}\n" for path in files)
    (tree / "etc" / "check-files").write_text(names)
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def make_image(name: str, directory: Path | None = None) -> GuestImage:
    """The image of this scale, made if it does not exist yet; `directory` makes another copy."""
    scale = SCALES[name]
    path, notes = _paths(scale)
    if directory is not None:
        path, notes = directory / path.name, directory / notes.name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f"{name}-*"):
            old.unlink()
        with tempfile.TemporaryDirectory(prefix="mufs-guest-") as scratch:
            tree = Path(scratch) / "tree"
            tree.mkdir()
            scale.fill(tree)
            notes.write_text(json.dumps({"sum": _finish(tree, scale)}))
            unfinished = path.with_suffix(".new")
            write_disk(tree, unfinished, scale.size)
            unfinished.rename(path)
    known = json.loads(notes.read_text())
    return GuestImage(path, scale.size, known["sum"], scale.memory, scale.timeout)
