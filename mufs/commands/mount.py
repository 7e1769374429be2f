"""
C{mount.mufs}, which mount(8) runs for C{mount -t mufs HOST:/ DIR -o OPTIONS}: starts a client, and
exits once it has mounted or failed.

mount(8) looks for helpers only in /sbin, by file system type: C{mount.mufs} and
C{mount.fuse.mufs}.
"""

import argparse
import os
import re
import select
import socket
import subprocess
import sys
from tempfile import TemporaryDirectory, TemporaryFile
from time import monotonic
from typing import IO, NoReturn

from mufs.client_tap import Options
from mufs.filesystem.client.mountpoint import AUTOMOUNT, uppermost
from mufs.options import parse_seconds

WRONG, FAILED = 1, 32
"""Exit statuses of mount(8): wrong usage; mount failed."""

BACKGROUND_TIMEOUT = 5.0
"""Seconds to wait for the mount with C{bg}; the client then goes on in the background."""

SERVER_TIMEOUT = 30.0
"""Seconds to wait for the server's first answer if operations may wait for ever."""

SOFT_TIMEOUT = 30.0
"""Seconds that an operation may take with C{soft}, unless another time is given."""

START_TIMEOUT = 60.0
"""Seconds to wait for the client's first status; the time to reach the server counts from then."""

STOP_TIMEOUT = 10.0
"""Seconds to wait for the client to exit before it is killed."""

IGNORED = {
    "rw", "ro", "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail",
    "_netdev", "exec", "nosuid", "nodev", "sync", "async", "dirsync", "atime", "noatime",
    "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime",
    "nolazytime", "mand", "nomand", "silent", "loud", "comment", "fg",
}  # fmt: skip
"""Ignored options: for mount(8) itself, or without effect here. mount(8) adds rw by itself."""

TLS = {"certificate": "certificate", "private_key": "privateKey", "trust_roots": "trustRoots"}
"""Options that become parts of the server's endpoint string."""

CLIENT = [
    sys.executable, "-I", "-c", "from twisted.scripts.twistd import run; run()",
    "--nodaemon", "--pidfile=", "--logger", "mufs.journal.client", Options.name,
]  # fmt: skip
"""twistd by this interpreter; -I keeps modules in the current directory from being imported."""


class Wrong(Exception):
    """The command line is wrong; the text says how."""


class Failed(Exception):
    """The mount failed; the text says why."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Wrong(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mount.mufs",
        description="Mount the images of an mUFS server. To be run by mount(8).",
    )
    parser.add_argument("source", metavar="HOST:/", help="the server")
    parser.add_argument("directory", metavar="DIR", help="empty directory to mount at")
    parser.add_argument("-o", dest="options", action="append", default=[], help="joined by commas")
    parser.add_argument("-f", dest="fake", action="store_true", help="mount nothing")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="pass over unknown options")
    parser.add_argument("-v", dest="verbose", action="store_true", help="say what is run")
    parser.add_argument("-n", dest="no_mtab", action="store_true", help="changes nothing")
    parser.add_argument("-t", dest="type", help="changes nothing")
    return parser


def client_options(source: str, texts: list[str], sloppy: bool = False) -> tuple[list[str], bool]:
    """
    Translate mount options into options of C{mufs-client}.

    @param texts: options, joined by commas; C{-} and C{_} in their names are equivalent.
    @return: the options, without the mount point, and whether C{bg} was given.
    @raise Wrong: when something is unknown or malformed.
    @raise Failed: for a remount.
    """
    host, colon, path = source.partition(":")
    if not colon or not host or not path.startswith("/"):
        raise Wrong(f"{source}: is not of the form HOST:/")
    if path != "/":
        raise Wrong(f"{source}: a server shares one tree: {host}:/ is all that can be mounted")
    flags = {str(name).replace("-", "_") for name, *_ in Options.optFlags}
    values = {str(name).replace("-", "_") for name, *_ in Options.optParameters}
    values -= {"server", "mount", "source"}
    arguments: list[str] = []
    tls: dict[str, str] = {}
    port, background, soft = "7040", False, None
    for option in filter(None, ",".join(texts).split(",")):
        name, equals, value = option.partition("=")
        name = name.replace("-", "_")
        if name in flags and not equals:
            arguments.append(f"--{name.replace('_', '-')}")
        elif name in values and value:
            arguments.append(f"--{name.replace('_', '-')}={value}")
        elif name in TLS and value:
            tls[TLS[name]] = re.sub(r"([:\\])", r"\\\1", value)
        elif name == "port" and value.isdecimal():
            port = value
        elif name == "bg":
            background = True
        elif name in ("hard", "soft") and not equals:
            soft = name == "soft"
        elif name == "timeo" and value.isdecimal():
            arguments.append(f"--timeout={int(value) / 10:g}")
        elif name == "remount":
            raise Failed("cannot remount: unmount, and mount with the new options")
        elif name in flags | values | TLS.keys() | {"port", "timeo"}:
            raise Wrong(f"option {option}: " + ("takes no value" if name in flags else "no value"))
        elif name not in IGNORED and not name.startswith(("x_", "X_")) and not sloppy:
            raise Wrong(f"option {option}: is unknown, or cannot be had of a mount of mUFS")
    limits = [each for each in arguments if each.startswith("--timeout=")]
    if soft and not limits:
        arguments.append(f"--timeout={SOFT_TIMEOUT:g}")
    elif soft is False:
        # As in NFS: hard says what happens, whatever time is given besides.
        arguments = [each for each in arguments if each not in limits]
    endpoint = ":".join(["tls" if tls else "tcp", host, port, *map("=".join, tls.items())])
    return [*arguments, f"--server={endpoint}", f"--source={source}"], background


def _timeout(arguments: list[str]) -> float:
    """Seconds to wait for the server: the client's C{--timeout}, if it has one."""
    given = [each.partition("=")[2] for each in arguments if each.startswith("--timeout=")]
    text = given[-1] if given else Options()["timeout"]
    try:
        return parse_seconds(text) or SERVER_TIMEOUT
    except ValueError as error:
        raise Wrong(f"option timeout={text}: {error}") from None


def _said(stream: IO[bytes]) -> str:
    """The output of a client that exited, in one line."""
    stream.seek(0)
    lines = stream.read().decode(errors="replace").splitlines()
    return "; ".join(line.removeprefix(f"{Options.name}: ") for line in lines if line.strip())


def mount(directory: str, arguments: list[str], background: bool) -> None:
    """
    Start a client, and wait until it has mounted, which it reports as it does to systemd.

    @param directory: absolute path to mount at.
    @raise Failed: when the mount fails, or the server does not answer in time.
    """
    timeout = BACKGROUND_TIMEOUT if background else _timeout(arguments)
    there = uppermost(directory)
    awaited = there is not None and there.type == AUTOMOUNT
    # A pipe inherited from the caller would make the caller wait until the client exits.
    with (
        TemporaryDirectory(prefix="mufs-mount-") as place,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
        TemporaryFile() as said,
    ):
        told.bind(f"{place}/notify")
        # autofs blocks all processes outside this process group until the mount is there.
        client = subprocess.Popen(
            [*CLIENT, *arguments, f"--mount={directory}"],
            cwd="/", env={**os.environ, "NOTIFY_SOCKET": f"{place}/notify"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
            start_new_session=not awaited,
        )  # fmt: skip
        try:
            state = _wait(client, told, timeout)
        except BaseException:
            _end(client)
            raise
        if client.poll() is not None:
            raise Failed(_said(said) or f"the client ended with status {client.returncode}")
        if state is not None and not background:
            _end(client)
            raise Failed(f"not within {timeout:g} s: {state}")


def _wait(client: "subprocess.Popen[bytes]", told: socket.socket, timeout: float) -> str | None:
    """
    Wait until the client has mounted or exited, or the time is up.

    @param timeout: seconds, from the client's first status on.
    @return: the client's last status; C{None} once it has mounted.
    """
    state = ""
    deadline = monotonic() + START_TIMEOUT
    ended = os.pidfd_open(client.pid)
    try:
        while (left := deadline - monotonic()) > 0:
            readable = select.select([told.fileno(), ended], [], [], left)[0]
            if told.fileno() in readable:
                for line in told.recv(65536).decode(errors="replace").splitlines():
                    if line == "READY=1":
                        return None
                    name, _, value = line.partition("=")
                    if name == "STATUS":
                        deadline = deadline if state else monotonic() + timeout
                        state = value
            elif readable:
                break
    finally:
        os.close(ended)
    return state or "the client is starting"


def _end(client: "subprocess.Popen[bytes]") -> None:
    client.terminate()
    try:
        client.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        client.kill()


def main() -> None:
    """Mount, and exit with a status of mount(8); print one line if it fails."""
    try:
        given = _parser().parse_args()
        arguments, background = client_options(given.source, given.options, given.sloppy)
        directory = os.path.abspath(given.directory)
        if given.verbose:
            print(f"mount.mufs: {directory}, read-only:", *arguments)
        if not given.fake:
            mount(directory, arguments, background)
    except Wrong as error:
        print(f"mount.mufs: {error}", file=sys.stderr)
        sys.exit(WRONG)
    except Failed as error:
        print(f"mount.mufs: {given.source}: {error}", file=sys.stderr)
        sys.exit(FAILED)
