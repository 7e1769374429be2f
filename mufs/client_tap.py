"""C{twistd mufs-client}: its options, and the service they make."""

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
    renewal,
    status_endpoint,
)
from mufs.wire.pages import BLOCK

MIN_CACHE_SIZE = 8 * BLOCK
HOST_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cache_size(text: str) -> int:
    size = parse_size(text)
    if size < MIN_CACHE_SIZE:
        raise ValueError("is too small, 1M is the least")
    return size


class Options(CommonOptions):
    """The command line of the client."""

    name = "mufs-client"
    synopsis = "[options]"
    longdesc = "Mount the disk images that an mUFS server shares."
    optParameters = [
        ["server", None, None, "Endpoint of the server, as tcp:HOST:7040 (required)"],
        ["mount", None, None, "Empty directory to mount at (required)"],
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
            "Most bytes of images to keep, in memory or in the directory",
        ],
        [
            "cache-dir",
            None,
            None,
            "Directory to keep images in, for this client alone (default: in memory)",
        ],
        ["source", None, None, "What mount(8) shows as the device (default: the server)"],
        ["timeout", None, "30", "Seconds after which an operation fails (EIO)"],
        [
            "status",
            None,
            None,
            "Port or endpoint to serve the status page on (default: none)",
        ],
    ]
    optFlags = [
        ["allow-other", None, "Let other users than the one who mounts read it, too"],
        ["noexec", None, "Let nobody run programs from it"],
    ]
    conversions = {
        "interface": parse_address,
        "cache-size": _cache_size,
        "timeout": parse_seconds,
    }

    def postOptions(self) -> None:
        """Check what can be checked before anything starts."""
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
    """The client that the options describe."""
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
        host=socket.gethostname(),
        tls=is_tls(config["server"]),
    )
    status = config["status"]
    server = channel_client_endpoint(reactor, "server", config["server"])
    shown = None if status is None else status_endpoint(reactor, status)
    try:
        kept = config["cache-dir"]
        storage = None if kept is None else CacheDirectory(kept, config["server"])
        cache = BlockCache(settings.cache_size, storage)
    except UnusableDirectory as error:
        sys.exit(f"{Options.name}: --cache-dir: {kept}: {error}")
    except OSError as error:
        size = settings.cache_size >> 20
        sys.exit(f"{Options.name}: --cache-size: no {size} MiB to be had here: {error.strerror}")
    service = ClientMount(reactor, settings, cache=cache, server=server, status=shown)
    return supervised(reactor, service, renewal(server))
