"""C{twistd mufs-server}: its options, and the service that they describe."""

import os
from ipaddress import IPv4Address
from typing import Any

from twisted.application.service import IService
from twisted.internet import reactor as the_reactor
from twisted.python import usage

from mufs.addresses import WrongValue, parse_listen, parse_port, parse_status
from mufs.clock import use_monotonic_clock
from mufs.communication.server.packer import Compression
from mufs.endpoints import listen_endpoint, reload_of
from mufs.filesystem.server.access import Access, parse_rule, read_rules
from mufs.filesystem.server.library import ExportedDirectory
from mufs.notify import supervised
from mufs.options import (
    STATUS_ARGUMENTS,
    STATUS_OPTIONS,
    check_interface,
    parse_interface,
    parse_rate,
    parse_state_directory,
)
from mufs.options import Options as CommonOptions
from mufs.server import ServerService, ServerSettings
from mufs.status.state import StateFile

MAX_LEVEL = 19
"""Of Zstandard: higher ones need far more memory."""


def _group(text: str) -> str:
    try:
        is_group = IPv4Address(text).is_multicast
    except ValueError:
        is_group = False
    if not is_group:
        raise WrongValue("is not an IPv4 multicast address (224.0.0.0 to 239.255.255.255)")
    return text


def _compression(text: str) -> Compression | None:
    if text == "off":
        return None
    if text == "auto":
        return Compression()
    if not text.isdecimal() or not 1 <= int(text) <= MAX_LEVEL:
        raise WrongValue(f"is not auto, off or a level from 1 to {MAX_LEVEL}")
    return Compression(int(text), if_faster=False)


class Options(CommonOptions):
    """The command line of the server."""

    name = "mufs-server"
    synopsis = "--images DIR [options]"
    longdesc = "Share the disk images in a directory with many hosts, by multicast."
    example = "--images /srv/images"
    optParameters = [
        ["images", None, None, "Directory to share (required)"],
        ["listen", None, "7040", "Where clients connect: PORT, ADDRESS or ADDRESS:PORT"],
        [
            "tls-cert",
            None,
            None,
            "PEM file with the certificate and the private key of this server: use TLS",
        ],
        [
            "tls-ca",
            None,
            None,
            "PEM file, or directory of *.pem, with the authorities that may sign the certificates "
            "of clients",
        ],
        ["group", None, "239.5.5.0", "IPv4 multicast group to send to"],
        ["port", None, "7041", "UDP port to send to"],
        [
            "interface",
            None,
            None,
            "Network interface to send on, by name or IPv4 address (default: that of the route to "
            "the first client)",
        ],
        [
            "rate-max",
            None,
            "10G",
            "Maximum sending rate, in bits per second or with K, M, G, T (powers of 1000)",
        ],
        ["rate-min", None, "1M", "Minimum sending rate, likewise"],
        [
            "compress",
            None,
            "auto",
            "Compress what is multicast: auto (while it makes sending faster), off, or a level of "
            "Zstandard from 1 to 19 (always); zeros are left out in any case",
        ],
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
        *STATUS_OPTIONS,
    ]
    optFlags = [
        ["no-root-squash", None, "Treat root on a client's host as root, not as nobody"],
        ["all-squash", None, "Treat all users of a client's host as nobody"],
    ]
    conversions = {
        "group": _group,
        "port": parse_port,
        "interface": parse_interface,
        "rate-max": parse_rate,
        "rate-min": parse_rate,
        "compress": _compression,
        "status": parse_status,
        "state": parse_state_directory,
    }
    arguments = {
        "images": ("DIR", "/srv/images"),
        "listen": ("PORT|ADDRESS:PORT", "192.0.2.1:7040"),
        "tls-cert": ("FILE", "/etc/mufs/server.pem"),
        "tls-ca": ("FILE|DIR", "/etc/mufs/ca"),
        "allow": ("NAME:/PATH", "*.example.org:/common"),
        "allow-from": ("FILE", "/etc/mufs/allow"),
        "fsid": ("TEXT", "images"),
        "group": ("ADDRESS", "239.5.5.0"),
        "port": ("PORT", "7041"),
        "interface": ("NAME|ADDRESS", "eth0"),
        "rate-max": ("RATE", "800M"),
        "rate-min": ("RATE", "1M"),
        "compress": ("auto|off|LEVEL", "auto"),
        **STATUS_ARGUMENTS,
    }
    groups = {
        "Images": ["images", "allow", "allow-from", "no-root-squash", "all-squash", "fsid"],
        "Clients": ["listen", "tls-cert", "tls-ca"],
        "Multicast": ["group", "port", "interface", "rate-max", "rate-min", "compress"],
    }

    def __init__(self) -> None:
        super().__init__()
        self["allow"] = ()

    def opt_allow(self, rule: str) -> None:
        """Clients with this name in their certificate see PATH; repeatable (default: see all)"""
        self["allow"] += (self.checked("allow", rule, lambda: parse_rule(rule)),)

    def postOptions(self) -> None:
        """Check the values, as far as that is possible before the service starts."""
        self.require("images")
        self.require_with("tls-cert", "tls-ca")
        self.require_with("tls-ca", "tls-cert")
        listen, status = self["listen"], self["status"]
        rates = self["rate-min"], self["rate-max"]
        super().postOptions()
        if self["rate-min"] == 0:
            raise self.wrong("rate-min", rates[0], "is not above 0")
        if self["rate-min"] > self["rate-max"]:
            why = f"is more than --rate-max {rates[1]}"
            raise self.wrong("rate-min", rates[0], why)
        self["listen"] = self.checked(
            "listen", listen, lambda: parse_listen(listen, self["tls-cert"], self["tls-ca"])
        )
        self.checked("listen", listen, lambda: listen_endpoint(the_reactor, self["listen"]))
        if status is not None:
            self.checked("status", status, lambda: listen_endpoint(the_reactor, self["status"]))
        if (self["allow"] or self["allow-from"]) and self["listen"].tls is None:
            option = "allow" if self["allow"] else "allow-from"
            raise usage.UsageError(
                f"--{option} needs TLS, to know the names of clients, such as "
                "--tls-cert /etc/mufs/server.pem --tls-ca /etc/mufs/ca"
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
            why = f"{error.strerror}: give a directory"
            raise self.wrong("images", self["images"], why) from None
        if self["interface"] is not None:
            interface = self["interface"]
            self.checked("interface", interface, lambda: check_interface(interface))

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
                raise self.wrong("allow-from", file, reason) from None
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
        compression=config["compress"],
        tls=config["listen"].tls is not None,
        images=os.path.realpath(config["images"]),
    )
    status = config["status"]
    listen = listen_endpoint(reactor, config["listen"])
    service = ServerService(
        reactor,
        settings,
        library=config["library"],
        secret=os.urandom(32),
        listen=listen,
        status=None if status is None else listen_endpoint(reactor, status),
        state=None if config["state"] is None else StateFile(config["state"], Options.name),
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
