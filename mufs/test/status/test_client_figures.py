"""The values of the client's figures, in a simulated network."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mufs.status.client_figures import (
    client_figures,
    client_measurements,
    client_state,
    held_images,
)
from mufs.status.figures import CLIENT
from mufs.test.support.simulation import MIB, SimulatedNetwork

SERVER = "tcp:images.example.org:7040"
SIZE = 64 * MIB


class ClientFiguresTests(SynchronousTestCase):
    """What a client shows that has read an image."""

    def setUp(self) -> None:
        """Have a client read one image twice, and keep another one open."""
        self.network = SimulatedNetwork(1, 1, cache_size=SIZE)
        self.client = self.network.clients[0]
        self.network.put_image(b"first.img", MIB)
        self.network.put_image(b"second.img", MIB)
        for _ in range(2):
            self.network.run(self.network.read_all(0, b"first.img"))
        self.network.run(self.client.open(b"second.img"))

    def figures(self) -> Any:
        """All figures."""
        return client_figures(
            self.client.remote,
            self.client.cache,
            cache_size=SIZE,
            tls=False,
            server=SERVER,
            mount="/mnt/images",
            why_absent="nobody there",
        )

    def state(self, mount: str | None = "/mnt/images", why: str = "", server: str = SERVER) -> str:
        """The state in one line."""
        return client_state(
            self.client.remote,
            self.client.cache,
            cache_size=SIZE,
            mount=mount,
            server=server,
            why_absent=why,
        )

    def lose_server(self) -> None:
        """Have the server go."""
        self.network.server.kill()
        self.network.clock.advance(0.1)

    def test_values(self) -> None:
        """The figures are those of the parts."""
        figures = self.figures()
        self.assertEqual(figures["reads"], 16)
        self.assertEqual(figures["reads"], sum(figures[k] for k in ("hits", "joined", "misses")))
        self.assertEqual(figures["hit_rate"], figures["hits"] / 16)
        self.assertGreaterEqual(figures["hits"], 8)
        self.assertEqual(figures["bytes_delivered"], 2 * MIB)
        for kind, name in (("hit", "hits"), ("joined", "joined"), ("miss", "misses")):
            self.assertEqual(sum(figures["read_seconds"][kind]["reads"].values()), figures[name])
        self.assertEqual((figures["cache_bytes"], figures["cache_size"]), (MIB, SIZE))
        self.assertEqual((figures["connected"], figures["multicast_works"]), (True, True))
        self.assertEqual((figures["server"], figures["mount"]), (SERVER, "/mnt/images"))

    def test_zeros(self) -> None:
        """Bytes known to be zero are hits; transfers are counted as they came and unpacked."""
        before = self.figures()
        self.assertEqual(before["image_bytes_multicast"], before["bytes_multicast"])
        self.network.library.put(b"zeros.img", bytes(MIB))
        for _ in range(2):
            self.network.run(self.network.read_all(0, b"zeros.img"))
        after = self.figures()
        received = after["bytes_multicast"] - before["bytes_multicast"]
        self.assertLess(received, MIB / 100)
        self.assertGreater(received, 0)
        self.assertEqual(after["image_bytes_multicast"] - before["image_bytes_multicast"], MIB)
        self.assertGreaterEqual(after["hits"] - before["hits"], 8)
        self.assertGreaterEqual(after["bytes_zero"], MIB)
        self.assertEqual(after["cache_bytes"], before["cache_bytes"])

    def test_measurements(self) -> None:
        """Without a mount they are the same, but for the settings."""
        found = client_measurements(self.client.remote, self.client.cache, cache_size=SIZE)
        settings = {
            "tls": False, "server": SERVER, "mount": "/mnt/images", "certificate_days": None,
            "why_disconnected": "",
        }  # fmt: skip
        self.assertEqual({**found, **settings}, self.figures())

    def test_no_reads(self) -> None:
        """Before the first read the hit rate is 0."""
        client = SimulatedNetwork(2, 1).clients[0]
        found = client_measurements(client.remote, client.cache, cache_size=SIZE)
        self.assertEqual((found["reads"], found["hit_rate"]), (0, 0.0))

    def test_schema(self) -> None:
        """Each figure that is a metric is there."""
        self.assertLessEqual({figure.name for figure in CLIENT.figures}, self.figures().keys())

    def test_state(self) -> None:
        """The state tells the mount, the connection, multicast and the cache."""
        self.assertRegex(
            self.state(),
            rf"^mounted at /mnt/images; connected to {SERVER}; multicast: .+; "
            r"hit rate: \d+%; cache: 1 of 64 MiB$",
        )

    def test_not_mounted(self) -> None:
        """Before it is mounted the state tells of the connection alone."""
        self.assertEqual(self.state(None), f"connected to {SERVER}")

    def test_server_away(self) -> None:
        """Without a connection it tells why, if that is known."""
        self.lose_server()
        self.assertEqual(self.state(None), f"waiting for the server at {SERVER}")
        waiting = f"waiting for the server at {SERVER}: no route"
        self.assertEqual(self.state(None, "no route"), waiting)
        self.assertIn(f"; {waiting}; ", self.state(why="no route"))
        self.assertIs(self.figures()["connected"], False)
        self.assertEqual(self.figures()["why_disconnected"], "nobody there")

    def test_held_images(self) -> None:
        """The images opened last come first, each with what the cache holds of it."""
        second, first = held_images(self.client.remote, self.client.cache)
        self.assertEqual((second.path, second.is_open), (b"second.img", True))
        self.assertEqual((first.path, first.size, first.is_open), (b"first.img", MIB, False))
        self.assertEqual(first.missing(0, 0b1111), 0)
        self.assertEqual(second.missing(0, 0b1111), 0b1111)
