"""What a host runs out of: memory for the cache, open files, memory at all."""

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
"""What docs/operations/cache.md tells to give them, a client besides its cache."""

CGROUPS = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A group of processes that together may have so many bytes of memory, page cache and all."""

    def __init__(self, name: str, most: int) -> None:
        """@raise OSError: where there is no such thing."""
        first = (CGROUPS / "memory").is_dir()
        self._path = (CGROUPS / "memory" if first else CGROUPS) / f"{name}-{os.getpid()}"
        self._most_used = "memory.max_usage_in_bytes" if first else "memory.peak"
        self._killed = "memory.oom_control" if first else "memory.events"
        self._path.mkdir()
        try:
            limit = "memory.limit_in_bytes" if first else "memory.max"
            (self._path / limit).write_text(str(most))
        except OSError:
            self._path.rmdir()
            raise

    @property
    def command(self) -> list[str]:
        """The head of a command that is to be in the group."""
        script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        return ["sh", "-c", script, str(self._path)]

    def most_used(self) -> int:
        return int((self._path / self._most_used).read_text())

    def killed(self) -> int:
        """How many processes were ended for want of memory."""
        lines = (self._path / self._killed).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def close(self) -> None:
        # A process that has ended counts for a moment still.
        wait_until(lambda: not (self._path / "cgroup.procs").read_text(), 10, "no process in it")
        self._path.rmdir()


class MemoryLimitTests(LabTestCase):
    """Server and client may have no more memory than docs/operations/cache.md asks for."""

    def make_group(self, name: str, most: int) -> MemoryGroup:
        try:
            group = MemoryGroup(f"mufs-{name}", most)
        except OSError as error:
            raise SkipTest(f"no memory limits here: {error}") from None
        # Before the lab, and so closed after it.
        self.addCleanup(group.close)
        return group

    def test_enough(self) -> None:
        """Neither is killed for want of memory, with an image much larger than both limits."""
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
    """The system gives a client less memory than its cache may have."""

    def test_at_the_start(self) -> None:
        """A client that cannot have its cache says so in one line, and ends."""
        lab = self.make_lab(2, 1)
        limits = {"host1": "--fsize=1000000", "host2": "--as=3000000000"}
        for host, limit in limits.items():
            lab.before[host] = ["prlimit", limit]
            client = lab.start_client(host, "--cache-size", "4096M", wait=False)
            self.assertEqual(client.wait(20), 1, client.output)
            self.assertRegex(client.output, "^mufs-client: --cache-size: no 4096 MiB .*\n$")

    def test_while_reading(self) -> None:
        """A client whose cache gets no more memory reads on, with what it has, and says so once."""
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
    """A process may open no more files."""

    def test_images(self) -> None:
        """Who opens too many images gets EMFILE; others go on, and open more when there is room."""
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
            # Another host connects, looks around and reads what is open already.
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
        """Too many connections are refused without work; hosts read on what they have open."""
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
        """A client that may open nothing more reads on, connects anew, and ends with its mount."""
        lab = self.make_lab(1, 8 * MIB + 3)
        server = lab.start_server()
        client = lab.start_client("host1")
        self.read_all(lab)
        most = max(map(int, os.listdir(f"/proc/{client.pid}/fd"))) + 1
        resource.prlimit(client.pid, resource.RLIMIT_NOFILE, (most, most))
        server.kill()
        os.replace(self.new_image(lab), lab.images / "disk.img")
        lab.start_server()
        self.read_all(lab)
        client.stop()
        self.assertIn(client.wait(), ENDED)
        self.assertFalse(mounted(lab.mount_point("host1")), client.output)
        self.assertNotIn("Traceback", client.output)

    def new_image(self, lab: Lab) -> Path:
        path = lab.images / "new.img"
        self.sha256 = write_image(path, self.size)
        return path
