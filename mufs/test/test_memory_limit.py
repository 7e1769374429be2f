"""The memory that control groups leave to a process."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mufs.memory_limit import memory_limit

UNLIMITED = "9223372036854771712"
"""What version 1 says where there is no limit."""


class MemoryLimitTests(SynchronousTestCase):
    """Limits in a tree of files like those of the kernel."""

    def limit(self, groups: str, mounts: list[str], files: dict[str, str]) -> int | None:
        """The limit, given /proc/self/cgroup, mounts, and the files with limits."""
        root = Path(self.mktemp())
        mounted = "".join(f"30 23 0:26 {line}\n" for line in mounts)
        process = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounted}
        for name, text in (process | files).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return memory_limit(str(root))

    def test_version_2(self) -> None:
        """Of the group and those above it the smallest limit counts, also that of memory.high."""
        mounts = ["/ /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate"]
        group = "sys/fs/cgroup/system.slice/mufs.service/memory"
        above = "sys/fs/cgroup/system.slice/memory.max"
        for files, expected in (
            ({f"{group}.max": "max\n"}, None),
            ({f"{group}.max": "536870912\n"}, 536870912),
            ({f"{group}.max": "max\n", above: "1000000\n"}, 1000000),
            ({f"{group}.max": "536870912\n", f"{group}.high": "400000000\n"}, 400000000),
        ):
            limit = self.limit("0::/system.slice/mufs.service\n", mounts, files)
            self.assertEqual(limit, expected)

    def test_version_1(self) -> None:
        """Version 1 has a hierarchy for memory, beside which version 2 may have none."""
        mounts = [
            "/ /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
            "/ /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
            "/ /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
        ]
        limit = self.limit(
            "5:cpu:/other\n4:memory:/a/b\n0::/\n",
            mounts,
            {
                "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": UNLIMITED,
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "67108864\n",
                "sys/fs/cgroup/cpu/other/memory.limit_in_bytes": "1\n",
            },
        )
        self.assertEqual(limit, 67108864)

    def test_container(self) -> None:
        """In a container the mount may begin at its own group, or show only what is beneath."""
        for groups, mount, name in (
            ("4:memory:/docker/abc\n", "/docker/abc /mem ro - cgroup cgroup rw,memory", "mem/"),
            ("4:memory:/docker/abc\n", "/docker/x /mem ro - cgroup cgroup rw,memory", "mem/"),
        ):
            limit = self.limit(groups, [mount], {f"{name}memory.limit_in_bytes": "7000\n"})
            self.assertEqual(limit, 7000)
        limit = self.limit("0::/\n", ["/ /cg ro - cgroup2 c ro"], {"cg/memory.max": "8000\n"})
        self.assertEqual(limit, 8000)

    def test_none(self) -> None:
        """Without control groups there is no limit."""
        self.assertIsNone(self.limit("", [], {}))
        self.assertIsNone(memory_limit("/nowhere"))
