"""C{twistd mufs-client}: its options, and the service that they describe."""

import os
import socket
import sys
from typing import Any

from twisted.application.service import IService
from twisted.internet import reactor as the_reactor

from mufs.addresses import ServerAddress, WrongValue, parse_server, parse_status
from mufs.cache.client.blocks import BlockCache
from mufs.cache.client.directory import CacheDirectory
from mufs.cache.client.layout import UnusableDirectory
from mufs.client import ClientMount, ClientSettings
from mufs.clock import use_monotonic_clock
from mufs.endpoints import ServerEndpoint, listen_endpoint, reload_of
from mufs.filesystem.client.mounting import MountSettings
from mufs.filesystem.client.mountpoint import UnusableMountPoint, make_ready
from mufs.notify import supervised
from mufs.options import Options as CommonOptions
from mufs.options import (
    check_interface,
    parse_interface,
    parse_seconds,
    parse_size,
    parse_state_directory,
)
from mufs.sockets import escape
from mufs.status.state import StateFile
from mufs.wire.pages import BLOCK

MIN_CACHE_SIZE = 8 * BLOCK
"""Bytes."""

HOST_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
"""Bytes of memory of this host."""


def _cache_size(text: str) -> int:
    size = parse_size(text)
    if size < MIN_CACHE_SIZE:
        raise WrongValue("is too small: at least 1M")
    return size


class Options(CommonOptions):
    """The command line of the client."""

    name = "mufs-client"
    synopsis = "--server ADDRESS --mount DIR [options]"
    longdesc = "Mount the disk images that an mUFS server shares."
    example = "--server images.example.org --mount /mnt/images"
    optParameters = [
        [
            "server",
            None,
            None,
            "The server: HOST, HOST:PORT or [IPV6]:PORT, port 7040 unless given (required)",
        ],
        ["mount", None, None, "Empty directory to use as the mount point (required)"],
        [
            "tls-cert",
            None,
            None,
            "PEM file with the certificate and the private key of this host: use TLS",
        ],
        [
            "tls-ca",
            None,
            None,
            "PEM file, or directory of *.pem, with the authorities that may sign the server's "
            "certificate (default: those of the system)",
        ],
        [
            "interface",
            None,
            None,
            "Network interface to receive multicast on, by name or IPv4 address (default: that of "
            "the route to the server)",
        ],
        [
            "cache-size",
            None,
            f"{min(1024, HOST_MEMORY >> 22)}M",
            "Size of the cache, in memory or in the cache directory, in bytes or with K, M, G, T "
            "(powers of 1024)",
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
            "Where to serve the status page: PORT, for this host only, or ADDRESS:PORT (default: "
            "nowhere)",
        ],
        [
            "state",
            None,
            None,
            "Directory to keep the last day of the status page in (default: none)",
        ],
    ]
    optFlags = [
        ["allow-other", None, "Let other users read the mount, too"],
        ["noexec", None, "Do not allow programs on the mount to be run"],
    ]
    conversions = {
        "interface": parse_interface,
        "cache-size": _cache_size,
        "timeout": parse_seconds,
        "state": parse_state_directory,
        "offline-for": parse_seconds,
        "status": parse_status,
    }
    arguments = {
        "server": ("ADDRESS", "images.example.org"),
        "mount": ("DIR", "/mnt/images"),
        "tls-cert": ("FILE", "/etc/mufs/host1.pem"),
        "tls-ca": ("FILE|DIR", "/etc/mufs/ca"),
        "interface": ("NAME|ADDRESS", "eth0"),
        "cache-size": ("SIZE", "4G"),
        "cache-dir": ("DIR", "/var/cache/mufs/images"),
        "source": ("NAME", "images"),
        "timeout": ("SECONDS", "30"),
        "offline-for": ("SECONDS", "3600"),
        "status": ("PORT|ADDRESS:PORT", "7080"),
        "state": ("DIR", "/var/lib/mufs"),
    }
    groups = {
        "Server": ["server", "tls-cert", "tls-ca", "interface", "timeout", "offline-for"],
        "Mount": ["mount", "allow-other", "noexec", "source"],
        "Cache": ["cache-size", "cache-dir"],
    }

    def postOptions(self) -> None:
        """Check the values, as far as that is possible before the service starts."""
        self.require("server", "mount")
        self.require_with("tls-ca", "tls-cert")
        size, server, status = self["cache-size"], self["server"], self["status"]
        super().postOptions()
        self["server"] = self.checked(
            "server", server, lambda: parse_server(server, self["tls-cert"], self["tls-ca"])
        )
        self.checked("server", server, lambda: ServerEndpoint(the_reactor, self["server"]))
        if status is not None:
            self.checked("status", status, lambda: listen_endpoint(the_reactor, self["status"]))
        if self["interface"] is not None:
            interface = self["interface"]
            try:
                check_interface(interface)
            except WrongValue as error:
                # It may come later; until then reads go over TCP.
                print(f"{self.name}: {self.wrong('interface', interface, error)}", file=sys.stderr)
        if self["cache-dir"] is None and self["cache-size"] > HOST_MEMORY:
            raise self.wrong("cache-size", size, "is more than the memory of this host")
        try:
            self["mount"] = make_ready(self["mount"])
        except UnusableMountPoint as error:
            why = f"{error}: give an empty directory"
            raise self.wrong("mount", self["mount"], why) from None


def makeService(config: Options, reactor: Any = the_reactor) -> IService:
    """The service that the options describe."""
    use_monotonic_clock(reactor)
    address: ServerAddress = config["server"]
    settings = ClientSettings(
        server=str(address),
        mount=MountSettings(
            config["mount"],
            config["source"] or str(address),
            allow_other=bool(config["allow-other"]),
            noexec=bool(config["noexec"]),
        ),
        interface=config["interface"],
        cache_size=config["cache-size"],
        timeout=config["timeout"],
        offline_for=config["offline-for"],
        host=socket.gethostname(),
        tls=address.tls is not None,
    )
    server = ServerEndpoint(reactor, address)
    status = None if config["status"] is None else listen_endpoint(reactor, config["status"])
    directory = config["cache-dir"]
    try:
        storage = None if directory is None else CacheDirectory(directory, address.identity)
        cache = BlockCache(settings.cache_size, storage)
    except UnusableDirectory as error:
        why = f"{error}: give a directory of this client's own"
        config.exit(config.wrong("cache-dir", directory, why))
    except OSError as error:
        size = f"{settings.cache_size >> 20}M"
        why = f"is more than there is here ({error.strerror})"
        config.exit(config.wrong("cache-size", size, why))
    state = None
    if config["state"] is not None:
        state = StateFile(config["state"], f"{Options.name}-{escape(config['mount'])}")
    service = ClientMount(reactor, settings, cache=cache, server=server, status=status, state=state)
    return supervised(reactor, service, reload_of(server))
