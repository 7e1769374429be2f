"""What this host needs for any server: FUSE, and receive buffers."""

import os
import shutil
import socket
import stat
from ctypes.util import find_library
from pathlib import Path

from mufs.commands.check.finding import Finding, ok, problem, warning
from mufs.communication.client.receiver import RECEIVE_BUFFER
from mufs.communication.multicast import UDP_GRO, grow_receive_buffer, set_option


def findings() -> list[Finding]:
    """The findings about this host."""
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
    """Whether the kernel has FUSE, and this user may use it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return problem(
            "FUSE device",
            f"{path} is not there",
            "load the module; a container has to be given the device",
            "modprobe fuse",
            f"docker run --device {path} --cap-add SYS_ADMIN ...",
        )
    except OSError as error:
        return problem(
            "FUSE device",
            f"{path} cannot be opened: {error.strerror}",
            "let users open it; a container has to be given the device",
            f"chmod 666 {path}",
            f"docker run --device {path} --cap-add SYS_ADMIN ...",
        )
    return ok("FUSE device", f"{path} can be opened")


def fuse_library() -> Finding:
    """Whether libfuse 2 is where fusepy looks for it."""
    found = os.environ.get("FUSE_LIBRARY_PATH") or find_library("fuse")
    if found is None:
        return problem(
            "libfuse", "libfuse 2 is not found", "install it", "apt-get install libfuse2"
        )
    return ok("libfuse", found)


def fusermount() -> Finding:
    """Whether there is the program that unmounts, and mounts for other users than root."""
    found = shutil.which("fusermount")
    if found is None:
        return problem("fusermount", "not found in PATH", "install it", "apt-get install fuse")
    if os.geteuid() != 0 and not os.stat(found).st_mode & stat.S_ISUID:
        return problem(
            "fusermount",
            f"{found} does not run as root, so only root can mount",
            "run the client as root, or let it",
            f"chmod u+s {found}",
        )
    return ok("fusermount", found)


def allow_other(config: Path) -> Finding:
    """Whether users other than root may mount for others."""
    try:
        lines = config.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if any(line.strip() == "user_allow_other" for line in lines):
        return ok("--allow-other", f"user_allow_other is in {config}")
    return warning(
        "--allow-other",
        f"no user_allow_other in {config}: a mount of this user is for him alone",
        "let users mount for others, or run the client as root",
        f"echo user_allow_other >> {config}",
    )


def receive_buffer(granted: int, most: int | None) -> Finding:
    """
    Whether there is room for what comes while a client does something else.

    @param granted: bytes that this process gets; C{most} that anybody gets, if it is known.
    """
    kib, wanted = granted // 1024, RECEIVE_BUFFER // 1024
    remedy = "let users have it; in a file in /etc/sysctl.d/ it lasts"
    command = f"sysctl -w net.core.rmem_max={RECEIVE_BUFFER}"
    if granted < RECEIVE_BUFFER:
        figure = f"{kib} KiB of the {wanted} asked for: a client asks for less at a time"
        return warning("receive buffer", figure, remedy, command)
    others = ""
    if most is not None and most < RECEIVE_BUFFER:
        others = f"; a client that does not run as root gets {most // 1024} (net.core.rmem_max)"
    return ok("receive buffer", f"{kib} KiB, as asked for{others}")


def receive_offload(granted: bool) -> Finding:
    """Whether the kernel hands over many datagrams at once."""
    if granted:
        return ok("UDP GRO", "datagrams are received together")
    return warning(
        "UDP GRO",
        "the kernel hands over datagrams one by one, which costs eight times the processor time",
        "use Linux 5.0 or later",
    )
