"""
C{python -m mufs.demo [IMAGE]}: two hosts on this machine read an image that is sent once.

Server and clients are separate processes, with real mounts and sockets. All files are in one
temporary directory. When the demo ends, also by Ctrl-C or SIGTERM, it ends all processes and
removes the directory.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from attrs import frozen

from mufs.filesystem.client.libfuse import NoLibfuse, load
from mufs.filesystem.client.mountpoint import fusermount
from mufs.sockets import VARIABLE

LOOPBACK = "127.0.0.1"
HOSTS = 2
MIB = 1 << 20
GBIT_PER_SECOND = 1
"""What the server sends at most, as on a link for which compressing pays."""

IMAGE_SIZE = 64 * MIB
FILES_SIZE = 44 * MIB
"""Bytes of files in the image that the demo makes; the rest is for the file system itself."""

START_TIMEOUT = 20.0
"""Seconds to wait until a service can be used."""

STOP_TIMEOUT = 5.0
"""Seconds to wait for a service to exit before it is killed."""

_signals: list[int] = []


class Failed(Exception):
    """The demo failed; the text says why, in one line or with the end of a log below."""


class Interrupted(Exception):
    """A signal asked the demo to end."""


def _note(number: int, frame: object) -> None:
    # No exception here: it could come between the start of a process and its registration for
    # clean-up, or during clean-up.
    _signals.append(number)


def check_signals() -> None:
    """@raise Interrupted: when a signal has come."""
    if _signals:
        raise Interrupted


@frozen
class Reading:
    """The result of reading the whole image."""

    size: int
    digest: str
    seconds: float


def read(path: Path) -> Reading:
    """Read a file from its beginning to its end."""
    begin = time.monotonic()
    digest, size = sha256(), 0
    try:
        with open(path, "rb", buffering=0) as file:
            while data := file.read(MIB):
                check_signals()
                digest.update(data)
                size += len(data)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    return Reading(size, digest.hexdigest(), time.monotonic() - begin)


class Service:
    """One mUFS process, in a session of its own: on Ctrl-C the demo ends it."""

    def __init__(self, name: str, command: list[str], *, directory: Path, status: int) -> None:
        """@param status: TCP port to serve the figures on."""
        self.name = name
        self._status = status
        self._log = directory / f"{name}.log"
        twistd = os.path.join(os.path.dirname(sys.executable), "twistd")
        figures = ["--status", f"tcp:{status}:interface={LOOPBACK}"]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [twistd, "-n", "--pidfile=", *command, *figures],
                cwd=directory,
                env={**os.environ, VARIABLE: str(directory / "run")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """@raise Failed: when it has ended."""
        if self._process.poll() is not None:
            raise Failed(f"{self.name} ended by itself; its log:\n{self.log()}")

    def log(self) -> str:
        """The last lines of its log."""
        return "".join(self._log.read_text(errors="replace").splitlines(keepends=True)[-20:])

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """
        Wait for a condition that holds soon after the start.

        @raise Failed: when it does not hold within L{START_TIMEOUT}, or the process ends.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while not condition():
            check_signals()
            self.check()
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} does not {what}; its log:\n{self.log()}")
            time.sleep(0.05)

    def listens(self) -> bool:
        """Whether it serves its figures, which a server does as its last step of starting."""
        with socket.socket() as connection:
            return connection.connect_ex((LOOPBACK, self._status)) == 0

    def figures(self) -> dict[str, Any]:
        """Its C{/status.json}."""
        connection = http.client.HTTPConnection(LOOPBACK, self._status, timeout=5)
        try:
            connection.request("GET", "/status.json")
            figures: dict[str, Any] = json.load(connection.getresponse())
        finally:
            connection.close()
        return figures

    def end(self) -> None:
        """Terminate it; kill it if that takes too long."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def unmount(point: Path) -> None:
    """Remove the mount that a killed client left behind."""
    subprocess.run(
        [fusermount(), "-u", "-z", "-q", "--", point],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def make_image(directory: Path) -> Path:
    """A disk image: an ext4 file system with files of Python's standard library."""
    library = Path(os.__file__).parent
    contents = directory / "contents"
    room = FILES_SIZE
    for source, directories, files in os.walk(library):
        directories[:] = sorted(set(directories) - {"site-packages", "dist-packages"})
        target = contents / os.path.relpath(source, library)
        target.mkdir(parents=True)
        for name in files:
            check_signals()
            room -= -(-os.path.getsize(os.path.join(source, name)) // 4096) * 4096
            if room >= 0:
                shutil.copyfile(os.path.join(source, name), target / name)
    (directory / "images").mkdir()
    image = directory / "images" / "disk.img"
    mke2fs = shutil.which("mke2fs", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if mke2fs is None:
        raise Failed("mke2fs is not installed (on Debian: apt-get install e2fsprogs)")
    command = [mke2fs, "-q", "-F", "-t", "ext4", "-m", "0", "-d", str(contents), str(image)]
    made = subprocess.run([*command, f"{IMAGE_SIZE // MIB}M"], capture_output=True, text=True)
    check_signals()
    if made.returncode:
        raise Failed(f"mke2fs failed: {made.stderr.strip()}")
    shutil.rmtree(contents)
    return image


def check_image(path: str) -> Path:
    """The image with this name. Raises L{Failed} if it cannot be exported."""
    try:
        image = Path(path).resolve(strict=True)
        found = image.stat()
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        raise Failed(f"{path}: not a file, or empty")
    return image


def check_machine() -> None:
    """@raise Failed: when this machine lacks something that a mount needs."""
    try:
        load()
    except NoLibfuse as error:
        raise Failed(str(error)) from None
    if shutil.which(fusermount()) is None:
        raise Failed(f"{fusermount()} is not installed (Debian: fuse3)")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        raise Failed(f"/dev/fuse: {error.strerror}: nothing can be mounted here") from None


def free_ports(*kinds: socket.SocketKind) -> list[int]:
    """A free port on the loopback interface for each kind of socket."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(type=kind)) for kind in kinds]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def finish(reads: "Collection[Future[Reading]]", services: list[Service]) -> list[Reading]:
    """Wait for all reads, and return their results."""
    running: set[Future[Reading]] = set(reads)
    while running:
        check_signals()
        for service in services:
            service.check()
        running = wait(running, timeout=0.1).not_done
    return [each.result() for each in reads]


def show(
    original: Reading, hosts: list[Reading], *, data: int, server: Any, clients: list[Any]
) -> None:
    """
    Print the results; the figures are those of the services' status.

    @param data: bytes of the image that are not in holes.
    """
    row = "{:8}{:>9}{:>9}{:>10}{:>8}{:>8}{:>8}   {}"
    print()
    print(row.format("", "seconds", "MB/s", "hit rate", "hits", "joined", "misses", "SHA-256"))
    for number, (host, of) in enumerate(zip(hosts, clients, strict=True), 1):
        speed = f"{host.seconds:.2f}", f"{host.size / host.seconds / 1e6:.1f}"
        reads = f"{of['hit_rate']:.1%}", of["hits"], of["joined"], of["misses"]
        verdict = "right" if host.digest == original.digest else "WRONG"
        print(row.format(f"host {number}", *speed, *reads, verdict))
    multicast, tcp = server["bytes_multicast"] / 1e6, server["bytes_over_tcp"] / 1e6
    delivered = sum(of["bytes_delivered"] for of in clients) / 1e6
    taken = server["image_read_bytes"]
    print()
    print(f"delivered to the hosts  {delivered:9.1f} MB")
    print(f"sent by the server      {multicast + tcp:9.1f} MB: ", end="")
    print(f"{multicast:.1f} by multicast, {tcp:.1f} over TCP; ", end="")
    print(f"{(multicast + tcp) / delivered:.2f} of what was delivered")
    unpacked, zero = server["image_bytes_multicast"], server["bytes_zero"]
    compressed, frames = server["bytes_compressed"], server["bytes_compressed_to"]
    print(
        f"before it was packed    {unpacked / 1e6:9.1f} MB: {zero / 1e6:.1f} zero, left out; ",
        end="",
    )
    print(f"{compressed / 1e6:.1f} compressed to {frames / 1e6:.1f}; ", end="")
    print(f"{(unpacked - zero - compressed) / 1e6:.1f} as it was")
    print(f"read from the image     {taken / 1e6:9.1f} MB: ", end="")
    print(f"each byte {taken / data:.2f} times; ", end="")
    print(f"{(original.size - data) / 1e6:.1f} of its {original.size / 1e6:.1f} MB are holes")
    for number, of in enumerate(clients, 1):
        if of["multicast"] != "working":
            print(f"multicast at host {number}: {of['multicast']}")


def demonstrate(given: str | None, stack: ExitStack) -> None:
    """
    Run the demo.

    @param stack: undoes everything that is done here.
    @raise Failed: also when a host did not read the bytes of the image.
    """
    image = None if given is None else check_image(given)
    check_machine()
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mufs-demo-")))
    # The stack is undone in reverse, so the mounts are gone before the pool waits for its reads.
    pool = stack.enter_context(ThreadPoolExecutor(HOSTS))
    *statuses, port, group_port = free_ports(*[socket.SOCK_STREAM] * (HOSTS + 2), socket.SOCK_DGRAM)
    if image is None:
        print(f"making a disk image of {IMAGE_SIZE // MIB} MiB")
        image = make_image(directory)
        listen, connect = f"tcp:{port}:interface={LOOPBACK}", f"tcp:{LOOPBACK}:{port}"
    else:
        # The whole directory of the image is exported. A Unix socket, unlike a TCP port, keeps
        # other users of this machine from reading it.
        listen = connect = "unix:server.socket"
    (original,) = finish([pool.submit(read, image)], [])

    print(
        f"starting one server, with {GBIT_PER_SECOND} Gbit/s, and {HOSTS} clients "
        f"for {image.name}, {original.size / 1e6:.1f} MB"
    )
    command = ["mufs-server", "--images", str(image.parent), "--listen", listen]
    command += ["--interface", LOOPBACK, "--port", str(group_port), "--no-root-squash"]
    command += ["--rate-max", f"{GBIT_PER_SECOND}G"]
    server = Service("server", command, directory=directory, status=statuses.pop())
    stack.callback(server.end)
    server.wait_until(server.listens, "listen")
    clients, points = [], []
    for number in range(1, HOSTS + 1):
        point = directory / f"host{number}"
        point.mkdir()
        command = [
            "mufs-client",
            "--server",
            connect,
            "--interface",
            LOOPBACK,
            "--mount",
            str(point),
        ]
        stack.callback(unmount, point)
        client = Service(f"client{number}", command, directory=directory, status=statuses.pop())
        stack.callback(client.end)
        clients.append(client)
        points.append(point)
    for client, point in zip(clients, points, strict=True):
        client.wait_until(partial(os.path.ismount, point), "mount")

    print(f"reading the whole image through {HOSTS} mounts at the same moment")
    reads = [pool.submit(read, point / image.name) for point in points]
    hosts = finish(reads, [server, *clients])
    figures = [client.figures() for client in clients]
    data = min(original.size, 512 * image.stat().st_blocks)
    show(original, hosts, data=data, server=server.figures(), clients=figures)
    if any(host.digest != original.digest for host in hosts):
        raise Failed("a host read other bytes than those of the image")


def main() -> int:
    """Run the demo, and return its exit status."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a real file
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        print("usage: python -m mufs.demo [IMAGE]", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _note)
    try:
        with ExitStack() as stack:
            demonstrate(sys.argv[1] if len(sys.argv) > 1 else None, stack)
    except Failed as reason:
        print(f"mufs.demo: {reason}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"mufs.demo: {error}", file=sys.stderr)
        return 1
    except Interrupted:
        print("mufs.demo: interrupted", file=sys.stderr)
        return 128 + _signals[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
