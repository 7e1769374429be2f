"""Check what this host needs for any server: FUSE and receive buffers."""

import os
import shutil
import socket
import stat
from pathlib import Path

from mufs.commands.check.finding import Finding, ok, problem, warning
from mufs.communication.client.group_socket import RECEIVE_BUFFER
from mufs.communication.multicast import UDP_GRO, grow_receive_buffer, set_option
from mufs.filesystem.client.libfuse import NoLibfuse, load
from mufs.filesystem.client.mountpoint import fusermount as program


def findings() -> list[Finding]:
    """Run all checks of this host."""
    found = [fuse_device("/dev/fuse"), fuse_library(), fusermount()]
    if os.geteuid() != 0:
        found.append(allow_other(Path("/etc/fuse.conf")))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        granted = grow_receive_buffer(probe, RECEIVE_BUFFER)
        offload = set_option(probe, socket.SOL_UDP, UDP_GRO, 1)
    found.append(receive_buffer(granted, number("/proc/sys/net/core/rmem_max")))
    found.append(receive_offload(offload))
    return found


def number(path: str) -> int | None:
    """The number in a file of /proc; C{None} if there is none."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def fuse_device(path: str) -> Finding:
    """Whether the kernel has FUSE and this user may open the device."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return problem(
            "FUSE device",
            f"{path} does not exist",
            "load the fuse module; in a container, pass the device in",
            "modprobe fuse",
            f"docker run --device {path} --cap-add SYS_ADMIN ...",
        )
    except OSError as error:
        return problem(
            "FUSE device",
            f"{path} cannot be opened: {error.strerror}",
            "let users open it; in a container, pass the device in",
            f"chmod 666 {path}",
            f"docker run --device {path} --cap-add SYS_ADMIN ...",
        )
    return ok("FUSE device", f"{path} can be opened")


def fuse_library() -> Finding:
    """Which libfuse a client would use."""
    try:
        found = load()
    except NoLibfuse as error:
        return problem("libfuse", str(error), "install one", "apt-get install libfuse3-3 fuse3")
    slower = "" if found.major == 3 else "; with libfuse 3 a client would be faster"
    return ok("libfuse", f"{found.version}{slower}")


def fusermount() -> Finding:
    """Whether fusermount is installed; ordinary users need it setuid root."""
    found = shutil.which(program())
    if found is None:
        return problem("fusermount", "not found in PATH", "install it", "apt-get install fuse3")
    if os.geteuid() != 0 and not os.stat(found).st_mode & stat.S_ISUID:
        return problem(
            "fusermount",
            f"{found} is not setuid root, so only root can mount",
            "run the client as root, or set the setuid bit",
            f"chmod u+s {found}",
        )
    return ok("fusermount", found)


def allow_other(config: Path) -> Finding:
    """Whether an ordinary user may give others access to a mount."""
    try:
        lines = config.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if any(line.strip() == "user_allow_other" for line in lines):
        return ok("--allow-other", f"user_allow_other is in {config}")
    return warning(
        "--allow-other",
        f"no user_allow_other in {config}: only this user can access the mounts made here",
        "allow the option for all users, or run the client as root",
        f"echo user_allow_other >> {config}",
    )


def receive_buffer(granted: int, most: int | None) -> Finding:
    """
    Whether the receive buffer can hold the datagrams that arrive while a client is busy.

    @param granted: bytes granted to this process.
    @param most: the limit for ordinary users in bytes, if it is known.
    """
    kib, wanted = granted // 1024, RECEIVE_BUFFER // 1024
    remedy = "raise the limit; to keep it, add it to a file in /etc/sysctl.d/"
    command = f"sysctl -w net.core.rmem_max={RECEIVE_BUFFER}"
    if granted < RECEIVE_BUFFER:
        figure = f"{kib} KiB of the {wanted} requested, so a client requests less at a time"
        return warning("receive buffer", figure, remedy, command)
    others = ""
    if most is not None and most < RECEIVE_BUFFER:
        others = f"; a client that does not run as root gets {most // 1024} KiB (net.core.rmem_max)"
    return ok("receive buffer", f"{kib} KiB, as requested{others}")


def receive_offload(granted: bool) -> Finding:
    """Whether the kernel delivers several datagrams per system call."""
    if granted:
        return ok("UDP GRO", "the kernel delivers several datagrams at once")
    return warning(
        "UDP GRO",
        "the kernel delivers datagrams one by one, which takes eight times the CPU time",
        "use Linux 5.0 or later",
    )
