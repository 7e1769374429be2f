"""Addresses as users type them."""

from twisted.trial.unittest import SynchronousTestCase

from mufs.addresses import (
    ListenAddress,
    ServerAddress,
    TLSFiles,
    WrongValue,
    parse_listen,
    parse_server,
    parse_status,
)

FILES = TLSFiles("host.pem", None, "ca")


class ServerTests(SynchronousTestCase):
    """Where a client reaches its server."""

    def test_short(self) -> None:
        """A name or an address is enough; port and TLS may be added."""
        for text, host, port in [
            ("images.example.org", "images.example.org", 7040),
            ("images:7050", "images", 7050),
            ("192.0.2.1", "192.0.2.1", 7040),
            ("192.0.2.1:1", "192.0.2.1", 1),
            ("[fd00::1]", "fd00::1", 7040),
            ("[::1]:65535", "::1", 65535),
            ("under_score.lan", "under_score.lan", 7040),
            ("bücher.example", "bücher.example", 7040),
            ("images.example.org.", "images.example.org.", 7040),
            ("7040.example", "7040.example", 7040),
        ]:
            self.assertEqual(parse_server(text), ServerAddress(host, port))
            expected = ServerAddress(host, port, FILES)
            self.assertEqual(parse_server(text, "host.pem", "ca"), expected)

    def test_endpoints(self) -> None:
        """Endpoint strings of TCP, TLS and UNIX sockets mean what they mean to Twisted."""
        for text, expected in [
            ("tcp:192.0.2.1:7040", ServerAddress("192.0.2.1", 7040)),
            ("tcp:host=h:port=1", ServerAddress("h", 1)),
            (r"tcp:fd00\:\:1:7040", ServerAddress("fd00::1", 7040)),
            (
                "tcp:h:7040:timeout=5:bindAddress=192.0.2.2",
                ServerAddress("h", 7040, None, "192.0.2.2", 5),
            ),
            ("tls:h:7040", ServerAddress("h", 7040, TLSFiles())),
            ("tls:h:1:certificate=host.pem:trustRoots=ca", ServerAddress("h", 1, FILES)),
            (
                r"tls:h:1:certificate=a\:b:privateKey=c",
                ServerAddress("h", 1, TLSFiles("a:b", "c", None)),
            ),
            ("unix:server.socket", ServerAddress("", path="server.socket")),
        ]:
            self.assertEqual(parse_server(text), expected, text)

    def test_shown(self) -> None:
        """An address is shown as it is typed, and is another server with TLS than without."""
        for text in ("h:7040", "[fd00::1]:7040"):
            address = parse_server(text)
            self.assertEqual((str(address), address.identity), (text, f"tcp:{text}"))
            self.assertEqual(parse_server(text, "host.pem").identity, f"tls:{text}")
        self.assertEqual(str(parse_server("unix:a")), "unix:a")

    def assert_wrong(self, text: str, telling: str, example: str | None) -> None:
        """The address is refused, in words that tell what is wrong, and with this example."""
        error = self.assertRaises(WrongValue, parse_server, text)
        self.assertIn(telling, str(error), text)
        self.assertEqual(error.example, example, text)
        if example is not None:
            parse_server(example.replace("HOST", "host"))

    def test_wrong(self) -> None:
        """What is malformed is refused by the part that is wrong, with a right example."""
        for text, telling, example in [
            ("", "host is missing", None),
            (":7040", "host is missing", None),
            ("h:", "port is missing", "h:7040"),
            ("h:port", "port port", "h:7040"),
            ("h:0", "port 0", "h:7040"),
            ("h:99999", "port 99999", "h:7040"),
            ("h:" + "9" * 5000, "is not a number", "h:7040"),
            ("[fd00::1]:x", "port x", "[fd00::1]:7040"),
            ("fd00::1", "brackets", "[fd00::1]:7040"),
            ("[fd00::x]:1", "[fd00::x] is not an IPv6", "[fd00::1]:7040"),
            ("[192.0.2.1]:1", "is not an IPv6", "[fd00::1]:7040"),
            ("[]", "is not an IPv6", "[fd00::1]:7040"),
            ("192.0.2", "is not an IPv4", None),
            ("192.0.2.300:7040", "192.0.2.300 is not an IPv4", None),
            ("a b", "is not the name", None),
            ("h..h", "is not the name", None),
            ("-h", "is not the name", None),
            ("/srv", "is not the name", None),
            ("http://h:1", "is not an address of the form", None),
            ("udp:h:1", "is not an address of the form", None),
            ("tcp", "host is missing", "tcp:HOST:7040"),
            ("tcp:192.0.2.1", "port is missing", "tcp:192.0.2.1:7040"),
            ("tcp:h:port", "port port", "tcp:h:7040"),
            ("tcp:h:99999", "port 99999", "tcp:h:7040"),
            ("tcp:h:1:2", "2 is too much", "tcp:h:7040"),
            ("tcp:h:1:timeout=x", "timeout=x", "tcp:h:7040:timeout=30"),
            ("tls:h:7040:cert=x", "cert= is not known", None),
            ("tls:h:7040:certificate=", "certificate= is missing", None),
            ("tcp6:h:1", "nothing to connect to", None),
            ("unix:", "path is missing", "unix:/run/mufs/socket"),
        ]:
            self.assert_wrong(text, telling, example)
        error = self.assertRaises(WrongValue, parse_server, "ssl:h:7040")
        self.assertIn("does not check", str(error))

    def test_both(self) -> None:
        """An endpoint string has its own files of TLS, so options for these are refused."""
        for text in ("tcp:h:7040", "tls:h:7040"):
            error = self.assertRaises(WrongValue, parse_server, text, "host.pem", "ca")
            self.assertIn("--tls-cert", str(error))


class ListenTests(SynchronousTestCase):
    """Where a service listens."""

    def test_short(self) -> None:
        """A port, an address or both."""
        for text, expected in [
            ("7040", ListenAddress(7040)),
            ("0", ListenAddress(0)),
            ("192.0.2.1", ListenAddress(7040, "192.0.2.1")),
            ("192.0.2.1:7050", ListenAddress(7050, "192.0.2.1")),
            ("[::]:7040", ListenAddress(7040, "::")),
            ("[fd00::1]", ListenAddress(7040, "fd00::1")),
            ("tcp:7040", ListenAddress(7040)),
            ("tcp:7040:interface=127.0.0.1", ListenAddress(7040, "127.0.0.1")),
            ("tcp:port=7040:backlog=5", ListenAddress(7040, backlog=5)),
            ("tcp:7040:127.0.0.1:5", ListenAddress(7040, "127.0.0.1", None, 5)),
            ("tcp6:7040", ListenAddress(7040, "::")),
            (r"tcp6:7040:interface=\:\:1", ListenAddress(7040, "::1")),
            ("unix:/run/x", ListenAddress(0, endpoint="unix:/run/x")),
        ]:
            self.assertEqual(parse_listen(text), expected, text)
        self.assertEqual(parse_listen("7040", "host.pem", "ca"), ListenAddress(7040, None, FILES))
        tls = "tls:7040:certificate=host.pem:trustRoots=ca:interface=127.0.0.1"
        self.assertEqual(parse_listen(tls), ListenAddress(7040, "127.0.0.1", FILES))

    def test_wrong(self) -> None:
        """What is malformed, or would not check clients, is refused in words."""
        for text, telling in [
            ("", "host is missing"),
            ("99999", "port 99999"),
            ("192.0.2.1:x", "port x"),
            ("localhost:7040", "localhost is not an address"),
            ("eth0", "eth0 is not an address"),
            ("tcp", "port is missing"),
            ("tcp:http", "port http"),
            ("tcp:99999", "port 99999"),
            ("tcp:7040:interfaces=lo", "interfaces= is not known"),
            ("tcp:7040:interface=lo", "lo is not an address"),
            ("tcp:1:192.0.2.1:3:4", "4 is too much"),
            ("tls:7040", "certificate= is missing"),
            ("tls:7040:certificate=a", "trustRoots= is missing"),
            ("tls:7040:x:certificate=a:trustRoots=b", "x is too much"),
            ("tls:7040:certificate=a:trustRoots=b:verify=no", "verify= is not known"),
            ("ssl:7040:privateKey=a", "does not check"),
        ]:
            error = self.assertRaises(WrongValue, parse_listen, text)
            self.assertIn(telling, str(error), text)

    def test_status(self) -> None:
        """The status page is for this host only, unless an interface is given."""
        for text, interface in [
            ("7080", "127.0.0.1"),
            ("0.0.0.0:7080", "0.0.0.0"),
            ("[::1]:7080", "::1"),
            ("tcp:7080", "127.0.0.1"),
            ("tcp:port=7080:backlog=50", "127.0.0.1"),
            ("tcp:7080:192.0.2.1", "192.0.2.1"),
            ("tcp:7080:interface=", ""),
            (r"tcp:7080:interface=\:\:1", "::1"),
            ("tcp6:7080", "::1"),
            (r"tcp6:7080:interface=\:\:", "::"),
        ]:
            self.assertEqual(parse_status(text), ListenAddress(7080, interface), text)
        for text, endpoint in [
            ("unix:/run/status:mode=600", "unix:/run/status:mode=600"),
            ("ssl:7080:privateKey=a", "ssl:7080:privateKey=a:interface=127.0.0.1"),
            ("ssl:7080:privateKey=a:interface=", "ssl:7080:privateKey=a:interface="),
        ]:
            self.assertEqual(parse_status(text), ListenAddress(0, endpoint=endpoint), text)

    def test_wrong_status(self) -> None:
        """It has no default port, and TLS for clients is nothing for it."""
        for text in ("127.0.0.1", "tls:7080:certificate=a:trustRoots=b", "http", "7080:127.0.0.1"):
            self.assertRaises(WrongValue, parse_status, text)
