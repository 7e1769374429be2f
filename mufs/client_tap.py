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
from mufs.filesystem.client.libfuse import NoLibfuse, load
from mufs.filesystem.client.mounting import MountSettings
from mufs.filesystem.client.mountpoint import UnusableMountPoint, make_ready
from mufs.memory_limit import memory_limit
from mufs.notify import supervised
from mufs.options import (
    STATUS_ARGUMENTS,
    STATUS_OPTIONS,
    check_interface,
    parse_interface,
    parse_seconds,
    parse_size,
    parse_state_directory,
)
from mufs.options import Options as CommonOptions
from mufs.sockets import escape
from mufs.status.state import StateFile
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
        raise WrongValue("is too small: at least 1M")
    return size


def _parse_fuse(text: str) -> int:
    if text not in ("2", "3"):
        raise WrongValue("is neither 2 nor 3")
    return int(text)


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
            f"{default_cache_size() >> 20}M",
            "Size of the cache, in memory or in the cache directory, in bytes or with K, M, G, T "
            "(powers of 1024)",
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
        [
            "fuse",
            None,
            None,
            "Version of libfuse to mount with, 2 or 3 (default: 3 if it is there)",
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
        *STATUS_OPTIONS,
    ]
    optFlags = [
        ["allow-other", None, "Let other users read the mount, too"],
        ["noexec", None, "Do not allow programs on the mount to be run"],
    ]
    conversions = {
        "interface": parse_interface,
        "fuse": _parse_fuse,
        "cache-size": _cache_size,
        "cache-reserve": parse_size,
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
        "cache-reserve": ("SIZE", "10G"),
        "fuse": ("2|3", "3"),
        "source": ("NAME", "images"),
        "timeout": ("SECONDS", "30"),
        "offline-for": ("SECONDS", "3600"),
        **STATUS_ARGUMENTS,
    }
    groups = {
        "Server": ["server", "tls-cert", "tls-ca", "interface", "timeout", "offline-for"],
        "Mount": ["mount", "allow-other", "noexec", "source", "fuse"],
        "Cache": ["cache-size", "cache-dir", "cache-reserve"],
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
            self["fuse"] = load(self["fuse"])
        except NoLibfuse as error:
            if self["fuse"] is None:
                self.exit(error)
            raise self.wrong("fuse", str(self["fuse"]), error) from None
        try:
            self["mount"] = make_ready(self["mount"])
        except UnusableMountPoint as error:
            why = f"{error}: give an empty directory"
            raise self.wrong("mount", self["mount"], why) from None


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
    address: ServerAddress = config["server"]
    settings = ClientSettings(
        server=str(address),
        mount=MountSettings(
            config["fuse"],
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
        storage = None
        if directory is not None:
            storage = CacheDirectory(directory, address.identity, reserve=config["cache-reserve"])
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
    service = ClientMount(
        reactor,
        settings,
        cache=cache,
        server=server,
        status=status,
        state=state,
        warning=too_large(settings.cache_size, storage),
    )
    return supervised(reactor, service, reload_of(server))
