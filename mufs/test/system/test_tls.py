"""TLS on the request channel, with real certificates and real connections."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from attrs import define, field
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from service_identity import CertificateError
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.ssl import Certificate
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from mufs.addresses import ListenAddress, parse_listen, parse_server
from mufs.commands import authority, keys
from mufs.commands.keys import make_keys, renew_key, revoke_key
from mufs.communication.certificates import UnusableFile
from mufs.communication.client.channel import (
    ClientChannel,
    ClientChannelFactory,
    IChannelUser,
    Refused,
)
from mufs.communication.server import intake
from mufs.endpoints import ServerEndpoint, expiry_of, listen_endpoint, reload_of
from mufs.filesystem.server.access import Access, parse_rule
from mufs.server import ServerService, ServerSettings
from mufs.test.support.memory import MemoryLibrary
from mufs.wire.channel import Data, Key, Sent, Type, pack_tagged
from mufs.wire.metadata import VERSION, At, Attributes, Hello, Pull, Report, Welcome, encode

HELLO = pack_tagged(Type.HELLO, 0, encode(Hello(VERSION, "any name")))
LOCAL = "127.0.0.1"
the_reactor: Any = reactor


@implementer(IChannelUser)
@define(eq=False)
class RecordingUser:
    """A client that records whether it was accepted."""

    channel: ClientChannel | None = None
    refusal: Refused | None = None
    done: Deferred[bool] = field(factory=Deferred)

    def end(self) -> None:
        """End the connection, if there is one."""
        if self.channel is not None:
            self.channel.transport.abortConnection()

    def connected(self, channel: ClientChannel, welcome: Welcome) -> None:
        """See L{IChannelUser.connected}."""
        self.channel = channel
        self.done.callback(True)

    def moved(self, welcome: Welcome) -> None:
        """See L{IChannelUser.moved}."""

    def refused(self, reason: Refused) -> None:
        """See L{IChannelUser.refused}."""
        self.refusal = reason
        self.done.callback(False)

    def silent(self) -> None:
        """See L{IChannelUser.silent}."""

    def disconnected(self) -> None:
        """See L{IChannelUser.disconnected}."""
        self.channel = None

    def sent(self, sent: Sent) -> None:
        """See L{IChannelUser.sent}."""

    def key(self, key: Key) -> None:
        """See L{IChannelUser.key}."""

    def pull(self, pull: Pull) -> None:
        """See L{IChannelUser.pull}."""

    def report(self) -> Report:
        """See L{IChannelUser.report}."""
        return Report(0, 0, 0, 0, True, "not used yet")

    def data(self, data: Data) -> None:
        """See L{IChannelUser.data}."""

    def segments(self, packets: bytes) -> None:
        """See L{IChannelUser.segments}."""

    def transfer_expired(self, tag: int) -> None:
        """See L{IChannelUser.transfer_expired}."""

    def failed(self, tag: int, error: OSError) -> None:
        """See L{IChannelUser.failed}."""


class TLSTestCase(TestCase):
    """Has two authorities, each with certificates for a server and a client."""

    timeout = 60

    def setUp(self) -> None:
        """Make the keys, and record log events."""
        self.top = Path(self.mktemp()).absolute()
        self.own, self.other = self.top / "own", self.top / "other"
        for directory in (self.own, self.other):
            make_keys(directory, ["images.lab", "localhost", LOCAL], ["host1.lab"])
        self.events: list[Any] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.library = MemoryLibrary()
        self.library.put(b"secret-name.img", b"secret bytes")

    def logged(self, side: str) -> list[str]:
        """Return the lines that one side of the channel has logged."""
        namespace = f"mufs.communication.{side}.channel"
        return [
            formatEvent(event)
            for event in self.events
            if event.get("log_namespace", "").startswith(namespace)
        ]

    def certificate(self, name: str = "host1.lab", of: Path | None = None) -> str:
        """Return certificate and trusted authorities as part of an endpoint string."""
        return f"certificate={of or self.own}/{name}.pem:trustRoots={self.own}/ca"

    def bundle(self, path: Path, *files: Path) -> None:
        """Concatenate files into one."""
        path.write_bytes(b"".join(file.read_bytes() for file in files))

    async def listen(
        self,
        certificate: str | None = None,
        tls: bool = True,
        rules: tuple[str, ...] = (),
        unchecked: bool = False,
    ) -> int:
        """Start a server, and return its port; C{unchecked} by TLS that asks for no certificate."""
        if unchecked:
            string = f"ssl:0:privateKey={self.own}/server.pem:interface={LOCAL}"
            where = ListenAddress(0, endpoint=string)
        elif tls:
            string = f"tls:0:{certificate or self.certificate('server')}:interface={LOCAL}"
            where = parse_listen(string)
        else:
            where = parse_listen(f"{LOCAL}:0")
        settings = ServerSettings(
            group="239.5.5.0", port=7041, interface=LOCAL, rate_min=10**6, rate_max=10**10, tls=tls
        )
        self.endpoint = listen_endpoint(the_reactor, where)
        self.service = ServerService(
            the_reactor,
            settings,
            library=self.library,
            secret=b"secret",
            listen=self.endpoint,
            status=None,
            access=Access(tuple(map(parse_rule, rules)) or None),
        )
        self.service.startService()
        self.addCleanup(self.service.stopService)
        while self.service.clients.port is None:
            await self.pause()
        address: Any = self.service.clients.port.getHost()
        return int(address.port)

    async def pause(self, seconds: float = 0.01) -> None:
        """Let the reactor run."""
        await deferLater(the_reactor, seconds)

    async def connect(self, server: str) -> RecordingUser:
        """Connect a client, and wait until it is accepted or refused."""
        user = RecordingUser()
        factory = ClientChannelFactory(user, the_reactor, "told")
        lost: Any = factory.connect_failed

        def connect_failed(why: str) -> None:
            lost(why)
            user.done.callback(False)

        self.patch(factory, "connect_failed", connect_failed)
        endpoint = ServerEndpoint(the_reactor, parse_server(server))
        await endpoint.connect(factory)
        if await user.done:
            self.addCleanup(user.end)
        # The server may log its reason later.
        for _ in range(100):
            if self.logged("server"):
                break
            await self.pause()
        return user

    def assert_refused(self, on_server: str, on_client: str) -> None:
        """Assert that each side has logged the reason in one line, and nobody was accepted."""
        for side, expected in (("server", on_server), ("client", on_client)):
            lines = [line for line in self.logged(side) if "listening" not in line]
            self.assertEqual(len(lines), 1, (side, lines))
            self.assertIn(expected, lines[0])
        self.assertEqual([c.name for c in self.service.core.factory.channels if c.name], [])


class AcceptanceTests(TLSTestCase):
    """Certificates that are accepted or refused."""

    async def meet(
        self, server: str | None, client: str | None, tls: bool = True, name: str = LOCAL
    ) -> None:
        """
        Connect a client that is not accepted.

        @param client: its certificate and trusted authorities; C{None} without TLS.
        """
        port = await self.listen(server, tls)
        kind = f"tcp:{LOCAL}:{port}" if client is None else f"tls:{name}:{port}:{client}"
        user = await self.connect(kind)
        self.assertIsNone(user.channel)

    async def accepted(self) -> None:
        port = await self.listen()
        await self.connect(f"tls:localhost:{port}:{self.certificate()}")
        user = await self.connect(f"tls:{LOCAL}:{port}:{self.certificate()}")
        assert user.channel is not None
        found = await user.channel.ask(Type.GETATTR, At(b"secret-name.img"), Attributes)
        self.assertEqual(found.size, len(b"secret bytes"))
        figures: Any = self.service.figures()
        self.assertEqual([client["name"] for client in figures["clients"]], ["host1.lab"] * 2)
        self.assertIs(figures["tls"], True)

    async def too_many(self) -> None:
        port = await self.listen()
        self.service.core.limits.max_connections = 0
        user = await self.connect(f"tls:{LOCAL}:{port}:{self.certificate()}")
        self.assertIsNone(user.channel)
        (line,) = self.logged("client")
        self.assertIn("the other side has too many connections", line)

    def test_too_many(self) -> Deferred[None]:
        """A client that is one too many is told so before the handshake, and waits."""
        return ensureDeferred(self.too_many())

    def test_accepted(self) -> Deferred[None]:
        """
        A client of the same authority is accepted, under the name in its certificate, by the
        server's name and by its address.
        """
        return ensureDeferred(self.accepted())

    def test_no_certificate(self) -> Deferred[None]:
        """A client without a certificate is refused."""
        client = f"trustRoots={self.own}/ca"
        done = ensureDeferred(self.meet(None, client))
        return done.addCallback(lambda _: self.assert_refused("did not return", ""))

    def test_other_authority(self) -> Deferred[None]:
        """A client of another authority is refused."""
        done = ensureDeferred(self.meet(None, self.certificate(of=self.other)))
        return done.addCallback(
            lambda _: self.assert_refused("'host1.lab' is of an authority that is not trusted", "")
        )

    def test_authority_taken_away(self) -> Deferred[None]:
        """A client whose authority is no longer trusted is refused."""
        trusted = self.top / "trusted"
        trusted.mkdir()
        self.bundle(trusted / "own.pem", self.own / "ca" / "ca.pem")
        self.bundle(trusted / "other.pem", self.other / "ca" / "ca.pem")
        client = f"certificate={self.other}/host1.lab.pem:trustRoots={self.own}/ca"
        server = f"certificate={self.own}/server.pem:trustRoots={trusted}"

        async def both() -> None:
            port = await self.listen(server)
            user = await self.connect(f"tls:{LOCAL}:{port}:{client}")
            self.assertIsNotNone(user.channel)
            os.unlink(trusted / "other.pem")
            self.events.clear()
            await self.meet(server, client)

        done = ensureDeferred(both())
        return done.addCallback(lambda _: self.assert_refused("is not trusted", ""))

    def test_expired(self) -> Deferred[None]:
        """A client whose certificate has expired is refused."""
        self.patch(authority, "LIFETIME", timedelta(hours=-1))
        make_keys(self.own, [], ["late.lab"])
        done = ensureDeferred(self.meet(None, self.certificate("late.lab")))
        return done.addCallback(lambda _: self.assert_refused("'late.lab' has expired", ""))

    def test_self_signed(self) -> Deferred[None]:
        """A client with a self-signed certificate is refused."""
        self.bundle(self.other / "self.pem", self.other / "ca" / "ca.pem", self.other / "ca.key")
        done = ensureDeferred(self.meet(None, self.certificate("self", self.other)))
        return done.addCallback(lambda _: self.assert_refused("is self-signed", ""))

    async def unasked(self) -> None:
        port = await self.listen(unchecked=True)
        user = await self.connect(f"tls:{LOCAL}:{port}:{self.certificate()}")
        self.assertIsNone(user.channel)
        self.assert_refused("TLS asked for none", "at once")

    def test_unasked(self) -> Deferred[None]:
        """The server refuses everybody if its TLS endpoint requests no certificates."""
        return ensureDeferred(self.unasked())

    def test_wild_name(self) -> Deferred[None]:
        """The name in a refused certificate is logged without line breaks."""
        name, signer = x509.DNSName("a\nb" * 50), authority.make_authority(self.other, [])
        use = ExtendedKeyUsageOID.CLIENT_AUTH
        self.patch(authority, "_name", lambda _: x509.Name([]))
        authority.issue(signer, self.other / "wild.pem", names=[name], use=use)
        done = ensureDeferred(self.meet(None, self.certificate("wild", self.other)))
        done.addCallback(lambda _: self.assert_refused(r"of 'a\nba\nb", ""))
        return done.addCallback(lambda _: self.assertNotIn("\n", self.logged("server")[0]))

    def test_no_name(self) -> Deferred[None]:
        """A client whose certificate has no name is refused."""
        self.patch(authority, "_name", lambda _: x509.Name([]))
        use = ExtendedKeyUsageOID.CLIENT_AUTH
        names: list[x509.GeneralName] = [x509.IPAddress(ip_address(LOCAL))]
        authority.issue(
            authority.make_authority(self.own, []), self.own / "none.pem", names=names, use=use
        )
        done = ensureDeferred(self.meet(None, self.certificate("none")))
        return done.addCallback(lambda _: self.assert_refused("has no name", "at once"))

    def test_server_as_client(self) -> Deferred[None]:
        """A client with a server's certificate is refused."""
        done = ensureDeferred(self.meet(None, self.certificate("server")))
        return done.addCallback(lambda _: self.assert_refused("is not for clients", ""))

    def test_client_as_server(self) -> Deferred[None]:
        """A server with a client's certificate is refused."""
        make_keys(self.own, [], ["localhost"])
        done = ensureDeferred(
            self.meet(self.certificate("localhost"), self.certificate(), name="localhost")
        )
        return done.addCallback(lambda _: self.assert_refused("refuses", "another authority"))

    def test_other_server(self) -> Deferred[None]:
        """A client refuses a server of another authority."""
        server = self.certificate("server", self.other)
        done = ensureDeferred(self.meet(server, self.certificate()))
        return done.addCallback(lambda _: self.assert_refused("unknown ca", "another authority"))

    def test_expired_server(self) -> Deferred[None]:
        """A client refuses a server whose certificate has expired."""
        self.patch(authority, "LIFETIME", timedelta(hours=-1))
        (self.own / "server.pem").unlink()
        make_keys(self.own, [LOCAL], [])
        done = ensureDeferred(self.meet(None, self.certificate()))
        return done.addCallback(lambda _: self.assert_refused("expired", "another authority"))

    def test_name_of_the_server(self) -> Deferred[None]:
        """A client refuses a server whose certificate is for other hosts."""
        (self.own / "server.pem").unlink()
        make_keys(self.own, ["images.lab", "127.0.0.2"], [])
        done = ensureDeferred(self.meet(None, self.certificate()))
        return done.addCallback(
            lambda _: self.assert_refused("it disconnected", "for another name")
        )

    async def malformed(self) -> None:
        def alternative(name: str) -> x509.GeneralName:
            return x509.DNSName(name)

        self.patch(keys, "_alternative", alternative)
        (self.own / "server.pem").unlink()
        make_keys(self.own, ["127.0.0.2"], [])
        port = await self.listen()
        user = RecordingUser()
        factory = ClientChannelFactory(user, the_reactor, "told")
        address = parse_server(f"tls:{LOCAL}:{port}:{self.certificate()}")
        endpoint = ServerEndpoint(the_reactor, address)
        await endpoint.connect(factory)
        while self.service.core.factory.channels:
            await self.pause()
        self.assertIsNone(user.channel)
        self.assertIn("Invalid DNS pattern", self.logged("client")[0])
        self.flushLoggedErrors(CertificateError)

    def test_malformed_name_of_the_server(self) -> Deferred[None]:
        """A client refuses a server whose certificate has invalid host names."""
        return ensureDeferred(self.malformed())

    def test_plain_client(self) -> Deferred[None]:
        """A server with TLS refuses a client without TLS."""
        done = ensureDeferred(self.meet(None, None))
        return done.addCallback(lambda _: self.assert_refused("not TLS", "it may want TLS"))

    def test_plain_server(self) -> Deferred[None]:
        """A client with TLS refuses a server without TLS."""
        done = ensureDeferred(self.meet(None, self.certificate(), tls=False))
        return done.addCallback(lambda _: self.assert_refused("it speaks TLS", "it may want TLS"))

    async def said_once_without_tls(self) -> None:
        port = await self.listen(tls=False)
        for _ in range(3):
            await self.connect(f"tls:{LOCAL}:{port}:{self.certificate()}")
        self.assertEqual(len(self.logged("server")), 1)

    def test_said_once_without_tls(self) -> Deferred[None]:
        """A server without TLS logs a client with TLS once."""
        return ensureDeferred(self.said_once_without_tls())

    async def said_once(self) -> None:
        port = await self.listen()
        for _ in range(3):
            await self.connect(f"tls:{LOCAL}:{port}:trustRoots={self.own}/ca")
        self.assertEqual(len(self.logged("server")), 1)
        await self.connect(f"tls:{LOCAL}:{port}:{self.certificate()}")
        await self.connect(f"tls:{LOCAL}:{port}:trustRoots={self.own}/ca")
        while len(self.logged("server")) < 2:
            await self.pause()

    def test_said_once(self) -> Deferred[None]:
        """A server logs once why it refuses an address, and again after it was accepted."""
        return ensureDeferred(self.said_once())


class RawTests(TLSTestCase):
    """Clients that do not behave as mUFS clients."""

    def context(self, certificate: Path | None = None) -> ssl.SSLContext:
        """Make a TLS context without verification."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    def talk(self, port: int, context: ssl.SSLContext) -> tuple[str, bytes]:
        """Send HELLO and READDIR; return the TLS version, or an error, and the received bytes."""
        received = b""
        with socket.create_connection((LOCAL, port), timeout=20) as plain:
            try:
                with context.wrap_socket(plain) as channel:
                    version = str(channel.version())
                    channel.sendall(HELLO + pack_tagged(Type.READDIR, 1, encode(At(b""))))
                    while b"secret-name" not in received:
                        data = channel.recv(1 << 16)
                        if not data:
                            break
                        received += data
                    return version, received
            except OSError as error:
                return type(error).__name__, received

    async def ask(self, change: Callable[[ssl.SSLContext], None], *own: Path) -> tuple[str, bytes]:
        """Return the result of L{talk} with a changed context, and a certificate or none."""
        port = await self.listen()
        context = self.context(*own)
        change(context)
        result: tuple[str, bytes] = await deferToThread(self.talk, port, context)
        return result

    def limit(self, version: ssl.TLSVersion) -> Callable[[ssl.SSLContext], None]:
        """Return a change of a context to this TLS version only."""

        def change(context: ssl.SSLContext) -> None:
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version

        return change

    async def versions(self) -> None:
        certificate = self.own / "host1.lab.pem"
        for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            spoken, received = await self.ask(self.limit(version), certificate)
            self.assertEqual(spoken, version.name.replace("_", "."))
            self.assertIn(b"secret-name", received)
        for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1):
            spoken, received = await self.ask(self.limit(version), certificate)
            self.assertNotIn("TLSv", spoken)
            self.assertEqual(received, b"")

    def test_versions(self) -> Deferred[None]:
        """TLS 1.3 and 1.2 are supported, and older versions are refused."""
        return ensureDeferred(self.versions())

    async def nothing_heard(self) -> None:
        for own in ((), (self.other / "host1.lab.pem",), (self.own / "server.pem",)):
            for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
                _, received = await self.ask(self.limit(version), *own)
                self.assertEqual(received, b"")

    def test_nothing_heard(self) -> Deferred[None]:
        """
        Without a valid certificate, a client receives no byte of the channel, even with TLS 1.3,
        where the handshake ends for the client before the server has verified it.
        """
        return ensureDeferred(self.nothing_heard())

    def resumed(self, port: int, context: ssl.SSLContext) -> bool:
        """Return whether a second connection can resume the TLS session of the first one."""
        session = None
        for _ in range(2):
            with socket.create_connection((LOCAL, port), timeout=20) as plain:
                channel = context.wrap_socket(plain, session=session)
                channel.sendall(HELLO)
                channel.recv(1 << 16)
                session = channel.session
        return bool(channel.session_reused)

    async def no_resumption(self) -> None:
        port = await self.listen()
        for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            context = self.context(self.own / "host1.lab.pem")
            self.limit(version)(context)
            self.assertFalse(await deferToThread(self.resumed, port, context))

    def test_no_resumption(self) -> Deferred[None]:
        """TLS sessions are not resumed, so that each connection is verified."""
        return ensureDeferred(self.no_resumption())

    async def half_open(self) -> None:
        for name in ("HELLO_TIMEOUT", "CLOSE_TIMEOUT"):
            self.patch(intake, name, 0.3)
        port = await self.listen()
        hello = ssl.MemoryBIO()
        tls = self.context().wrap_bio(ssl.MemoryBIO(), hello)
        self.assertRaises(ssl.SSLWantReadError, tls.do_handshake)
        first = hello.read()
        for start in (b"", first[:20], first):
            with socket.create_connection((LOCAL, port)) as plain:
                plain.sendall(start)
                await self.pause(0.05)
                self.assertEqual(len(self.service.core.factory.channels), 1)
                while self.service.core.factory.channels:
                    await self.pause()
        self.assertEqual(len([line for line in self.logged("server") if "no HELLO" in line]), 3)

    def test_half_open(self) -> Deferred[None]:
        """A connection whose handshake is not completed is closed after HELLO_TIMEOUT."""
        return ensureDeferred(self.half_open())

    async def unread(self) -> None:
        for name in ("HELLO_TIMEOUT", "CLOSE_TIMEOUT"):
            self.patch(intake, name, 0.3)
        port = await self.listen()
        with socket.create_connection((LOCAL, port)) as plain:
            plain.settimeout(20)
            context = self.context(self.own / "host1.lab.pem")
            channel = await deferToThread(context.wrap_socket, plain)
            channel.sendall(HELLO + pack_tagged(200, 1, b""))
            while self.service.core.factory.channels:
                await self.pause()
            channel.close()

    def test_given_up(self) -> Deferred[None]:
        """A client that violates the protocol is dropped even if it does not close its end."""
        return ensureDeferred(self.unread())


class RevocationTests(TLSTestCase):
    """Certificates that the operator has revoked."""

    def client(self, port: int, name: str = "host1.lab") -> str:
        """The endpoint string of a client."""
        return f"tls:{LOCAL}:{port}:{self.certificate(name)}"

    async def listen_and_reload(self) -> tuple[int, Callable[[], None]]:
        """Start a server; its port, and what reloads its certificates."""
        port = await self.listen()
        reload_tls = reload_of(self.endpoint)
        assert reload_tls is not None

        def reload() -> None:
            reload_tls()
            self.service.reloaded()

        return port, reload

    async def refused(self) -> None:
        list(revoke_key(self.own, "host1.lab"))
        port = await self.listen()
        user = await self.connect(self.client(port))
        self.assertIsNone(user.channel)
        self.assert_refused("the certificate of 'host1.lab' is revoked", "")
        list(renew_key(self.own, "host1.lab"))
        user = await self.connect(self.client(port))
        self.assertIsNotNone(user.channel)

    def test_refused(self) -> Deferred[None]:
        """A revoked certificate is refused; one that was made for the client later is accepted."""
        return ensureDeferred(self.refused())

    async def disconnected(self) -> None:
        make_keys(self.own, [], ["host2.lab"])
        port, reload = await self.listen_and_reload()
        for name in ("host1.lab", "host2.lab"):
            self.assertIsNotNone((await self.connect(self.client(port, name))).channel)
        epoch = self.service.core.keys.epoch.number
        list(revoke_key(self.own, "host2.lab"))
        names = [channel.name for channel in self.service.core.factory.channels]
        self.assertEqual(sorted(names), ["host1.lab", "host2.lab"])
        reload()
        while len(self.service.core.factory.channels) > 1:
            await self.pause()
        (channel,) = self.service.core.factory.channels
        self.assertEqual(channel.name, "host1.lab")
        while self.service.core.keys.epoch.number == epoch:
            await self.pause()

    def test_disconnected(self) -> Deferred[None]:
        """A client that is revoked while it is connected goes at the reload, and keys change."""
        return ensureDeferred(self.disconnected())

    async def pending(self) -> None:
        port, reload = await self.listen_and_reload()
        with socket.create_connection((LOCAL, port)) as plain:
            plain.settimeout(20)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.load_cert_chain(self.own / "host1.lab.pem")
            channel = await deferToThread(context.wrap_socket, plain)
            for _ in range(100):
                if self.service.core.factory.channels:
                    break
                await self.pause(0.1)
            list(revoke_key(self.own, "host1.lab"))
            reload()
            with contextlib.suppress(OSError):
                channel.sendall(HELLO)
            for _ in range(100):
                if not self.service.core.factory.channels:
                    break
                await self.pause(0.1)
            self.assertEqual(list(self.service.core.factory.channels), [])
            self.assertFalse([line for line in self.logged("server") if "connected" in line])
            channel.close()

    def test_pending(self) -> Deferred[None]:
        """A connection made before its certificate was revoked cannot be used afterwards."""
        return ensureDeferred(self.pending())

    async def useless(self) -> None:
        port, reload = await self.listen_and_reload()
        list(revoke_key(self.other, "host1.lab"))
        file = self.own / "ca" / "ca.crl"
        for content, telling in (
            (b"nonsense", "is no list of revoked certificates"),
            ((self.other / "ca" / "ca.crl").read_bytes(), "is not signed by an authority"),
        ):
            file.write_bytes(content)
            self.assertIn(telling, str(self.assertRaises(UnusableFile, reload)))
        self.assertIsNotNone((await self.connect(self.client(port))).channel)

    def test_useless(self) -> Deferred[None]:
        """A list that is none, or of another authority, is an error, and changes nothing."""
        return ensureDeferred(self.useless())

    async def days(self) -> None:
        await self.listen()
        days: Any = self.service.figures()["certificate_days"]
        self.assertTrue(729 < days < 730)
        client = ServerEndpoint(the_reactor, parse_server(self.client(7040)))
        server = Certificate.loadPEM((self.own / "host1.lab.pem").read_bytes())
        expected = server.original.to_cryptography().not_valid_after_utc
        self.assertEqual(expiry_of(client), expected)

    def test_days(self) -> Deferred[None]:
        """It is known how long the certificates in use are valid."""
        return ensureDeferred(self.days())
