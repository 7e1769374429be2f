"""
C{mount.mufs}, which mount(8) runs for C{mount -t mufs HOST:/ DIR -o OPTIONS}: starts a client, and
exits once it has mounted or failed.

mount(8) looks for helpers only in /sbin, by file system type: C{mount.mufs} and
C{mount.fuse.mufs}.
"""

import argparse
import os
import select
import socket
import subprocess
import sys
from difflib import get_close_matches
from tempfile import TemporaryDirectory, TemporaryFile
from time import monotonic
from typing import IO, NoReturn

from mufs.addresses import DEFAULT_PORT, WrongValue, parse_port, split_address
from mufs.client_tap import Options
from mufs.filesystem.client.mountpoint import AUTOMOUNT, uppermost
from mufs.options import one_line, parse_seconds, typed, version

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

FORMER = {"certificate": "tls_cert", "trust_roots": "tls_ca", "private_key": "tls_cert"}
"""Options of former versions, and what does the same now."""

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
        raise Wrong(f"{message}, such as `mount -t mufs images.example.org:/ /mnt/images`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mount.mufs",
        description="Mount the images of an mUFS server. To be run by mount(8).",
    )
    parser.add_argument("source", metavar="HOST:/", help="the server; [IPV6]:/ works, too")
    parser.add_argument("directory", metavar="DIR", help="empty directory to mount at")
    parser.add_argument("-o", dest="options", action="append", default=[], help="joined by commas")
    parser.add_argument("-f", dest="fake", action="store_true", help="mount nothing")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="pass over unknown options")
    parser.add_argument("-v", dest="verbose", action="store_true", help="say what is run")
    parser.add_argument("-n", dest="no_mtab", action="store_true", help="changes nothing")
    parser.add_argument("-t", dest="type", help="changes nothing")
    parser.add_argument("--version", action="version", version=version("mount.mufs"))
    return parser


def client_options(source: str, texts: list[str], sloppy: bool = False) -> tuple[list[str], bool]:
    """
    Translate mount options into options of C{mufs-client}.

    @param texts: options, joined by commas; C{-} and C{_} in their names are equivalent.
    @return: the options, without the mount point, and whether C{bg} was given.
    @raise Wrong: when something is unknown or malformed.
    @raise Failed: for a remount.
    """
    host = _host(source)
    flags = {str(name).replace("-", "_") for name, *_ in Options.optFlags}
    values = {str(name).replace("-", "_") for name, *_ in Options.optParameters}
    values -= {"server", "mount", "source"}
    arguments: list[str] = []
    port, background, soft = DEFAULT_PORT, False, None
    for option in filter(None, ",".join(texts).split(",")):
        name, equals, value = option.partition("=")
        name = name.replace("-", "_")
        if name in flags and not equals:
            arguments.append(f"--{name.replace('_', '-')}")
        elif name in values and value:
            arguments.append(f"--{name.replace('_', '-')}={value}")
        elif name == "port" and value:
            try:
                port = parse_port(value)
            except WrongValue as error:
                raise Wrong(f"option {option}: {error}, such as port={DEFAULT_PORT}") from None
        elif name == "bg":
            background = True
        elif name in ("hard", "soft") and not equals:
            soft = name == "soft"
        elif name == "timeo" and value.isdecimal():
            arguments.append(f"--timeout={int(value) / 10:g}")
        elif name == "remount":
            raise Failed("cannot remount: unmount, and mount with the new options")
        elif name in FORMER:
            raise Wrong(
                f"option {option}: is {FORMER[name]}= now, such as {_example(FORMER[name])}"
            )
        elif name in flags | {"hard", "soft"}:
            raise Wrong(f"option {option}: takes no value, such as -o {name}")
        elif name in values | {"port", "timeo"}:
            raise Wrong(f"option {option}: has no value, such as {_example(name)}")
        elif name not in IGNORED and not name.startswith(("x_", "X_")) and not sloppy:
            known = [*flags, *values, "port", "bg", "hard", "soft", "timeo"]
            near = get_close_matches(name, known, 1)
            wrong = f"option {option}: is unknown, or cannot be had of a mount of mUFS"
            raise Wrong(f"{wrong}, such as {_example(near[0] if near else 'cache_size')}")
    limits = [each for each in arguments if each.startswith("--timeout=")]
    if soft and not limits:
        arguments.append(f"--timeout={SOFT_TIMEOUT:g}")
    elif soft is False:
        # As in NFS: hard says what happens, whatever time is given besides.
        arguments = [each for each in arguments if each not in limits]
    return [*arguments, f"--server={host}:{port}", f"--source={source}"], background


def _host(source: str) -> str:
    """The host of C{HOST:/}, with brackets around an IPv6 address."""
    host, colon, path = source.rpartition(":")
    example = "such as images.example.org:/ or [fd00::1]:/"
    if not colon or not path.startswith("/"):
        raise Wrong(f"{typed(source)} is not of the form HOST:/, {example}")
    try:
        name, port = split_address(host)
    except WrongValue as error:
        raise Wrong(f"{typed(source)}: {error}, {example}") from None
    if port is not None:
        raise Wrong(f"{typed(source)}: the port is an option, such as -o port={port or 7040}")
    if path != "/":
        raise Wrong(
            f"{typed(source)}: a server shares one tree, which is mounted as a whole, such as "
            f"{host}:/"
        )
    return f"[{name}]" if ":" in name else name


def _example(name: str) -> str:
    """A right use of a mount option."""
    values = {**Options.arguments, "port": ("", str(DEFAULT_PORT)), "timeo": ("", "300")}
    option = name.replace("_", "-")
    return f"-o {name}={values[option][1]}" if option in values else f"-o {name}"


def _timeout(arguments: list[str]) -> float:
    """Seconds to wait for the server: the client's C{--timeout}, if it has one."""
    given = [each.partition("=")[2] for each in arguments if each.startswith("--timeout=")]
    text = given[-1] if given else Options()["timeout"]
    try:
        return parse_seconds(text) or SERVER_TIMEOUT
    except ValueError as error:
        raise Wrong(f"option timeout={text}: {error}, such as {_example('timeout')}") from None


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
        print(f"mount.mufs: {one_line(str(error))}", file=sys.stderr)
        sys.exit(WRONG)
    except Failed as error:
        print(f"mount.mufs: {one_line(f'{given.source}: {error}')}", file=sys.stderr)
        sys.exit(FAILED)
