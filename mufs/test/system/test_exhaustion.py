"""Hosts that run out of memory or open files."""

from __future__ import annotations

import os
import resource
import time
from contextlib import ExitStack
from errno import EMFILE
from pathlib import Path

from twisted.trial.unittest import SkipTest

from mufs.test.support.lab import SERVER, SERVER_ADDRESS, Lab, write_image
from mufs.test.support.processes import SERVER_PORT, mounted, wait_until
from mufs.test.system.test_failures import ENDED
from mufs.test.system.test_network import MIB, LabTestCase

FLOOD = f"""
import socket, time
connections = []
for _ in range(300):
    connections.append(socket.socket())
    connections[-1].settimeout(5)
    try:
        connections[-1].connect(("{SERVER_ADDRESS}", {SERVER_PORT}))
    except OSError:
        break
print("connected", flush=True)
time.sleep(600)
"""


SERVER_MEMORY = 160 * MIB
CLIENT_MEMORY = 100 * MIB
"""Bytes that docs/operations/cache.md recommends; a client's cache is not included."""

CGROUPS = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A control group with a memory limit in bytes, which includes the page cache."""

    def __init__(self, name: str, limit: int) -> None:
        """@raise OSError: where control groups are not available."""
        first = (CGROUPS / "memory").is_dir()
        self._path = (CGROUPS / "memory" if first else CGROUPS) / f"{name}-{os.getpid()}"
        self._most_used = "memory.max_usage_in_bytes" if first else "memory.peak"
        self._killed = "memory.oom_control" if first else "memory.events"
        self._path.mkdir()
        try:
            file = "memory.limit_in_bytes" if first else "memory.max"
            (self._path / file).write_text(str(limit))
        except OSError:
            self._path.rmdir()
            raise

    @property
    def command(self) -> list[str]:
        """The head of a command that runs in the group."""
        script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        return ["sh", "-c", script, str(self._path)]

    def most_used(self) -> int:
        return int((self._path / self._most_used).read_text())

    def killed(self) -> int:
        """Return how many processes the out-of-memory killer has ended."""
        lines = (self._path / self._killed).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def close(self) -> None:
        # A process counts for a moment after its end.
        wait_until(lambda: not (self._path / "cgroup.procs").read_text(), 10, "no process in it")
        self._path.rmdir()


class MemoryLimitTests(LabTestCase):
    """Server and client with the memory that docs/operations/cache.md recommends."""

    def make_group(self, name: str, limit: int) -> MemoryGroup:
        try:
            group = MemoryGroup(f"mufs-{name}", limit)
        except OSError as error:
            raise SkipTest(f"no memory limits here: {error}") from None
        # Cleanups run in reverse order: it is closed after the lab.
        self.addCleanup(group.close)
        return group

    def test_enough(self) -> None:
        """Neither runs out of memory with an image much larger than both limits."""
        groups = {
            SERVER: self.make_group(SERVER, SERVER_MEMORY),
            "host1": self.make_group("host1", CLIENT_MEMORY + 16 * MIB),
        }
        lab = self.make_lab(2, 200 * MIB + 5, rate=None)
        for name, group in groups.items():
            lab.before[name] = group.command
        server = lab.start_server()
        client = lab.start_client("host1", "--cache-size", "16M")
        lab.start_client("host2", "--cache-size", "16M")
        lab.network.set_loss("host1", 5)
        self.read_all(lab)
        self.assertTrue(server.running and client.running)
        self.assertEqual([group.killed() for group in groups.values()], [0, 0])
        for group in groups.values():
            self.assertGreater(group.most_used(), 32 * MIB)


class CacheMemoryTests(LabTestCase):
    """The system gives a client less memory than the size of its cache."""

    def test_at_the_start(self) -> None:
        """A client that cannot allocate its cache ends with an error of one line."""
        lab = self.make_lab(2, 1)
        limits = {"host1": "--fsize=1000000", "host2": "--as=3000000000"}
        for host, limit in limits.items():
            lab.before[host] = ["prlimit", limit]
            client = lab.start_client(host, "--cache-size", "4096M", wait=False)
            self.assertEqual(client.wait(20), 1, client.output)
            self.assertRegex(
                client.output, "^mufs-client: --cache-size 4096M: is more than there is here .*\n$"
            )

    def test_while_reading(self) -> None:
        """A client whose cache cannot grow reads on with a smaller one, and logs that once."""
        lab = self.make_lab(1, 16 * MIB + 4099)
        lab.start_server()
        client = lab.start_client("host1", "--cache-size", "64M")
        resource.prlimit(client.pid, resource.RLIMIT_FSIZE, (5 * MIB, 5 * MIB))
        for _ in range(2):
            self.read_all(lab)
            self.assertLessEqual(client.status()["cache_bytes"], 5 * MIB)
        self.assertGreater(client.status()["cache_bytes"], 4 * MIB)
        self.assertEqual(client.output.count("no memory for more than"), 1)
        self.assertNotIn("Traceback", client.output)


class OpenFilesTests(LabTestCase):
    """Processes that reach their limit of open files."""

    def test_images(self) -> None:
        """A client with too many open images gets EMFILE; others are not affected."""
        lab = self.make_lab(2, MIB + 1)
        lab.before[SERVER] = ["prlimit", "--nofile=200"]
        for number in range(150):
            (lab.images / f"{number}.img").write_bytes(b"%d" % number)
        server = lab.start_server()
        lab.start_client("host1")
        greedy = lab.mount_point("host1")
        with ExitStack() as files:
            with self.assertRaises(OSError) as caught:
                for number in range(150):
                    files.enter_context(open(greedy / f"{number}.img", "rb"))
            self.assertEqual(caught.exception.errno, EMFILE)
            self.assertGreater(number, 30)
            # Another host connects, lists the directory and reads an image that is open already.
            lab.start_client("host2")
            other = lab.mount_point("host2")
            self.assertEqual(len(os.listdir(other)), 151)
            self.assertEqual((other / "7.img").read_bytes(), b"7")
        wait_until(lambda: self.opens(other / "140.img"), 5, "there is room for it")
        self.read_all(lab)
        self.assertNotIn("Traceback", server.output)

    def opens(self, path: Path) -> bool:
        try:
            return bool(path.read_bytes())
        except OSError as error:
            self.assertEqual(error.errno, EMFILE)
            return False

    def test_connections(self) -> None:
        """Too many connections are refused cheaply; hosts go on reading their open images."""
        lab = self.make_lab(2, 4 * MIB + 9)
        lab.before[SERVER] = ["prlimit", "--nofile=200"]
        server = lab.start_server()
        lab.start_client("host1")
        reader = lab.start_reader("host1", "disk.img", pause=MIB)
        reader.wait_paused()
        flood = lab.start_program("flood", "host2", ["python3", "-c", FLOOD])
        flood.wait_until(lambda: "connected" in flood.output, 30, "has connected")
        self.assert_right([reader.result(30)])
        begin, used = time.monotonic(), lab.cpu_seconds(SERVER)
        time.sleep(1)
        idle = (lab.cpu_seconds(SERVER) - used) / (time.monotonic() - begin)
        self.assertLess(idle, 0.5)
        self.assertLess(len(server.output), 200_000)
        flood.kill()
        lab.start_client("host2")
        self.read_all(lab)
        self.assertNotIn("Traceback", server.output)

    def test_client(self) -> None:
        """A client at its limit of open files reads on, reconnects, and unmounts at its end."""
        lab = self.make_lab(1, 8 * MIB + 3)
        server = lab.start_server()
        client = lab.start_client("host1")
        self.read_all(lab)
        limit = max(map(int, os.listdir(f"/proc/{client.pid}/fd"))) + 1
        resource.prlimit(client.pid, resource.RLIMIT_NOFILE, (limit, limit))
        server.kill()
        os.replace(self.new_image(lab), lab.images / "disk.img")
        lab.start_server()
        # Until it has a connection again it answers by what it last knew.
        client.wait_until(
            lambda: client.output.count("connected to the server") == 2, 30, "reconnects"
        )
        self.read_all(lab)
        client.stop()
        self.assertIn(client.wait(), ENDED)
        self.assertFalse(mounted(lab.mount_point("host1")), client.output)
        self.assertNotIn("Traceback", client.output)

    def new_image(self, lab: Lab) -> Path:
        path = lab.images / "new.img"
        self.sha256 = write_image(path, self.size)
        return path
