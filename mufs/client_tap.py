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

HOST_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
"""Bytes of memory of this host."""


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
            f"{min(1024, HOST_MEMORY >> 22)}M",
            "Size of the cache, in memory or in the cache directory",
        ],
        [
            "cache-dir",
            None,
            None,
            "Directory for the cache, of this client only (default: in memory)",
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
        storage = None if directory is None else CacheDirectory(directory, config["server"])
        cache = BlockCache(settings.cache_size, storage)
    except UnusableDirectory as error:
        sys.exit(f"{Options.name}: --cache-dir: {directory}: {error}")
    except OSError as error:
        size = settings.cache_size >> 20
        sys.exit(f"{Options.name}: --cache-size: no {size} MiB to be had here: {error.strerror}")
    service = ClientMount(reactor, settings, cache=cache, server=server, status=shown)
    return supervised(reactor, service, reload_of(server))
