"""C{twistd mufs-server}: its options, and the service that they describe."""

import os
from ipaddress import IPv4Address
from typing import Any

from twisted.application.service import IService
from twisted.internet import reactor as the_reactor
from twisted.python import usage

from mufs.clock import use_monotonic_clock
from mufs.filesystem.server.access import Access, parse_rule, read_rules
from mufs.filesystem.server.library import ExportedDirectory
from mufs.notify import supervised
from mufs.options import Options as CommonOptions
from mufs.options import (
    channel_server_endpoint,
    is_tls,
    parse_address,
    parse_rate,
    reload_of,
    status_endpoint,
)
from mufs.server import ServerService, ServerSettings


def _group(text: str) -> str:
    if not IPv4Address(text).is_multicast:
        raise ValueError("is not a multicast address (224.0.0.0 to 239.255.255.255)")
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError("is not a port number")
    return int(text)


class Options(CommonOptions):
    """The command line of the server."""

    name = "mufs-server"
    synopsis = "[options]"
    longdesc = "Share the disk images in a directory with many hosts, by multicast."
    optParameters = [
        ["images", None, None, "Directory to share (required)"],
        ["listen", None, "tcp:7040", "Endpoint to listen on for clients"],
        ["group", None, "239.5.5.0", "IPv4 multicast group to send to"],
        ["port", None, "7041", "UDP port to send to"],
        [
            "interface",
            None,
            None,
            "Address of the interface to send on (default: that of the route to the first client)",
        ],
        ["rate-max", None, "10G", "Maximum sending rate, in bits per second"],
        ["rate-min", None, "1M", "Minimum sending rate, in bits per second"],
        [
            "allow-from",
            None,
            None,
            "File of further rules for --allow, one a line, which is read again at SIGHUP",
        ],
        [
            "fsid",
            None,
            None,
            "Text that identifies the file system of --images, if it has no UUID",
        ],
        [
            "status",
            None,
            None,
            "Port or endpoint to serve the status page at (default: none)",
        ],
    ]
    optFlags = [
        ["no-root-squash", None, "Treat root on a client's host as root, not as nobody"],
        ["all-squash", None, "Treat all users of a client's host as nobody"],
    ]
    conversions = {
        "group": _group,
        "port": _port,
        "interface": parse_address,
        "rate-max": parse_rate,
        "rate-min": parse_rate,
    }

    def __init__(self) -> None:
        super().__init__()
        self["allow"] = ()

    def opt_allow(self, rule: str) -> None:
        """NAME:/PATH: clients with that name may see PATH; repeatable (default: all see all)"""
        try:
            self["allow"] += (parse_rule(rule),)
        except ValueError as error:
            raise usage.UsageError(f"--allow: {rule!r}: {error}") from None

    def postOptions(self) -> None:
        """Check the values, as far as that is possible before the service starts."""
        self.require("images")
        super().postOptions()
        if not 0 < self["rate-min"] <= self["rate-max"]:
            raise usage.UsageError("--rate-min must be above 0 and at most --rate-max")
        if (self["allow"] or self["allow-from"]) and not is_tls(self["listen"]):
            option = "--allow" if self["allow"] else "--allow-from"
            raise usage.UsageError(
                f"{option} needs TLS (--listen tls:...) to know the names of clients"
            )
        if self["allow-from"]:
            # twistd may change the directory.
            self["allow-from"] = os.path.abspath(self["allow-from"])
        self.access()
        try:
            self["library"] = ExportedDirectory(
                os.path.abspath(self["images"]), os.fsencode(self["fsid"] or "")
            )
        except OSError as error:
            raise usage.UsageError(f"--images: {self['images']}: {error.strerror}") from None
        channel_server_endpoint(the_reactor, "listen", self["listen"])
        if self["status"] is not None:
            status_endpoint(the_reactor, self["status"])

    def access(self) -> Access:
        """
        The access rules, with those that the file has now.

        @raise UsageError: when the file is no list of rules.
        """
        rules, file = self["allow"], self["allow-from"]
        if file:
            try:
                rules += read_rules(file)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise usage.UsageError(f"--allow-from: {file}: {reason}") from None
        restricted = bool(rules or file)
        return Access(
            rules if restricted else None, not self["no-root-squash"], bool(self["all-squash"])
        )


def makeService(config: Options, reactor: Any = the_reactor) -> IService:
    """The service that the options describe."""
    use_monotonic_clock(reactor)
    settings = ServerSettings(
        group=config["group"],
        port=config["port"],
        interface=config["interface"],
        rate_min=config["rate-min"],
        rate_max=config["rate-max"],
        tls=is_tls(config["listen"]),
        images=os.path.realpath(config["images"]),
    )
    status = config["status"]
    listen = channel_server_endpoint(reactor, "listen", config["listen"])
    service = ServerService(
        reactor,
        settings,
        library=config["library"],
        secret=os.urandom(32),
        listen=listen,
        status=None if status is None else status_endpoint(reactor, status),
        changes=config["library"].contents if config["library"].contents.fileno() >= 0 else None,
        access=config.access(),
    )
    reload = reload_of(listen)

    def reload_tls() -> None:
        assert reload is not None
        reload()
        service.reloaded()

    rules = None
    if config["allow-from"]:
        rules = lambda: service.rules.replace(config.access(), service.core)  # noqa: E731
    return supervised(reactor, service, reload and reload_tls, rules=rules)
