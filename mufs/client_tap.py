"""C{twistd mufs-client}: its options, and the service that they describe."""

import os
import socket
import sys
from typing import Any

from twisted.application.service import IService
from twisted.internet import reactor as the_reactor
from twisted.python import usage

from mufs.cache.client.blocks import BlockCache
from mufs.cache.client.directory import CacheDirectory
from mufs.cache.client.layout import UnusableDirectory
from mufs.client import ClientMount, ClientSettings
from mufs.clock import use_monotonic_clock
from mufs.filesystem.client.mounting import MountSettings
from mufs.filesystem.client.mountpoint import UnusableMountPoint, make_ready
from mufs.memory_limit import memory_limit
from mufs.notify import supervised
from mufs.options import Options as CommonOptions
from mufs.options import (
    channel_client_endpoint,
    is_tls,
    parse_address,
    parse_seconds,
    parse_size,
    reload_of,
    status_endpoint,
)
from mufs.wire.pages import BLOCK

MIN_CACHE_SIZE = 8 * BLOCK
"""Bytes."""

PROCESS_MEMORY = 160 << 20
"""Bytes that a client takes besides its cache at most, with 64 MiB that wait for a slow disk."""

INDEX_SHARE = 256
"""Of a cache in a directory, that part is needed in memory for the list of its blocks."""

HOST_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
"""Bytes of memory of this host."""


def default_cache_size() -> int:
    """Bytes: as large as is sensible, and as the memory of the host and of the process allow."""
    size = min(1 << 30, HOST_MEMORY // 4)
    limit = memory_limit()
    if limit is not None and limit < HOST_MEMORY:
        size = max(MIN_CACHE_SIZE, min(size, limit // 2, limit - PROCESS_MEMORY))
    return size


def _cache_size(text: str) -> int:
    size = parse_size(text)
    if size < MIN_CACHE_SIZE:
        raise ValueError("is too small: at least 1M")
    return size


class Options(CommonOptions):
    """The command line of the client."""

    name = "mufs-client"
    synopsis = "[options]"
    longdesc = "Mount the disk images that an mUFS server shares."
    optParameters = [
        ["server", None, None, "Endpoint of the server, such as tcp:HOST:7040 (required)"],
        ["mount", None, None, "Empty directory to use as the mount point (required)"],
        [
            "interface",
            None,
            None,
            "Address of the interface to listen on (default: that of the route to the server)",
        ],
        [
            "cache-size",
            None,
            f"{default_cache_size() >> 20}M",
            "Size of the cache, in memory or in the cache directory",
        ],
        [
            "cache-dir",
            None,
            None,
            "Directory for the cache, of this client only (default: in memory)",
        ],
        [
            "cache-reserve",
            None,
            None,
            "Space to leave free on the disk of --cache-dir (default: 5 % of it, at most 1G)",
        ],
        ["source", None, None, "Device name that mount(8) shows (default: the server)"],
        [
            "timeout",
            None,
            "0",
            "Seconds after which an operation fails with EIO; 0: it waits for the server",
        ],
        [
            "offline-for",
            None,
            "3600",
            "Seconds for which names and attributes last known do while the server is away",
        ],
        [
            "status",
            None,
            None,
            "Port or endpoint to serve the status page at (default: none)",
        ],
    ]
    optFlags = [
        ["allow-other", None, "Let other users read the mount, too"],
        ["noexec", None, "Do not allow programs on the mount to be run"],
    ]
    conversions = {
        "interface": parse_address,
        "cache-size": _cache_size,
        "cache-reserve": parse_size,
        "timeout": parse_seconds,
        "offline-for": parse_seconds,
    }

    def postOptions(self) -> None:
        """Check the values, as far as that is possible before the service starts."""
        self.require("server", "mount")
        size = self["cache-size"]
        super().postOptions()
        channel_client_endpoint(the_reactor, "server", self["server"])
        if self["cache-dir"] is None and self["cache-size"] > HOST_MEMORY:
            raise usage.UsageError(f"--cache-size: {size!r}: is more than the memory of this host")
        if self["status"] is not None:
            status_endpoint(the_reactor, self["status"])
        try:
            self["mount"] = make_ready(self["mount"])
        except UnusableMountPoint as error:
            raise usage.UsageError(f"--mount: {self['mount']}: {error}") from None


def too_large(size: int, storage: CacheDirectory | None) -> str:
    """Why a cache of that size can never be full; empty if it can."""
    if storage is not None:
        room = max(0, storage.space.size - storage.space.reserve)
        if size > room:
            return (
                f"--cache-size: {size >> 20} MiB is more than the disk of {storage.path} has for "
                f"it ({room >> 20} MiB)"
            )
    needed = PROCESS_MEMORY + (size if storage is None else size // INDEX_SHARE)
    limit = memory_limit()
    if limit is not None and needed > limit:
        return (
            f"--cache-size: with {size >> 20} MiB this process may need {needed >> 20} MiB of "
            f"memory, and may use {limit >> 20} MiB: it may be killed"
        )
    return ""


def makeService(config: Options, reactor: Any = the_reactor) -> IService:
    """The service that the options describe."""
    use_monotonic_clock(reactor)
    settings = ClientSettings(
        server=config["server"],
        mount=MountSettings(
            config["mount"],
            config["source"] or config["server"],
            allow_other=bool(config["allow-other"]),
            noexec=bool(config["noexec"]),
        ),
        interface=config["interface"],
        cache_size=config["cache-size"],
        timeout=config["timeout"],
        offline_for=config["offline-for"],
        host=socket.gethostname(),
        tls=is_tls(config["server"]),
    )
    status = config["status"]
    server = channel_client_endpoint(reactor, "server", config["server"])
    shown = None if status is None else status_endpoint(reactor, status)
    try:
        directory = config["cache-dir"]
        storage = None
        if directory is not None:
            storage = CacheDirectory(directory, config["server"], reserve=config["cache-reserve"])
        cache = BlockCache(settings.cache_size, storage)
    except UnusableDirectory as error:
        sys.exit(f"{Options.name}: --cache-dir: {directory}: {error}")
    except OSError as error:
        size = settings.cache_size >> 20
        sys.exit(f"{Options.name}: --cache-size: no {size} MiB to be had here: {error.strerror}")
    warning = too_large(settings.cache_size, storage)
    service = ClientMount(
        reactor, settings, cache=cache, server=server, status=shown, warning=warning
    )
    return supervised(reactor, service, reload_of(server))
