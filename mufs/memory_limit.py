"""How much memory this process may use, by its control groups (cgroups(7))."""

import os
from collections.abc import Iterator
from contextlib import suppress

FILES = {"cgroup2": ("memory.max", "memory.high"), "cgroup": ("memory.limit_in_bytes",)}
"""The files with limits, by the type of the file system: version 2, and version 1."""


def memory_limit(root: str = "") -> int | None:
    """
    The smallest limit of the groups that this process is in, in bytes; C{None} if none limits it.

    @param root: put before each path.
    """
    limits = []
    for kind, mount, group in _groups(root):
        # A group is limited by those above it as well.
        while True:
            for name in FILES[kind]:
                with suppress(OSError, ValueError), open(f"{root}{mount}{group}/{name}") as file:
                    limits.append(int(file.read()))
            if group in ("", "/"):
                break
            group = os.path.dirname(group)
    return min(limits, default=None)


def _groups(root: str) -> Iterator[tuple[str, str, str]]:
    """The type and the mount point of a hierarchy, and this process's group beneath that."""
    groups = {}
    with suppress(OSError), open(f"{root}/proc/self/cgroup") as file:
        for line in file:
            _, controllers, group = line.rstrip("\n").split(":", 2)
            if not controllers:
                groups["cgroup2"] = group
            elif "memory" in controllers.split(","):
                groups["cgroup"] = group
    with suppress(OSError), open(f"{root}/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.rstrip("\n").partition(" - ")
            top, mount = before.split(" ")[3:5]
            kind, _, options = after.split(" ", 2)
            if kind == "cgroup" and "memory" not in options.split(","):
                continue
            if kind in groups:
                group = groups[kind]
                beneath = group.startswith(top.rstrip("/") + "/")
                # In a container, the mount may begin at the group of the container.
                yield kind, mount, group.removeprefix(top.rstrip("/")) if beneath else ""
