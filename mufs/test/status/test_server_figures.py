"""The values of the server's figures, in a simulated network."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mufs.status.figures import SERVER
from mufs.status.server_figures import server_figures, server_state, server_totals
from mufs.test.support.simulation import MIB, SimulatedNetwork


class ServerFiguresTests(SynchronousTestCase):
    """What a server shows of two clients, of which one reads."""

    def setUp(self) -> None:
        """Have one client read an image, and keep it open."""
        self.network = SimulatedNetwork(1, 2)
        self.network.put_image(b"disk\n.img", MIB)
        self.core = self.network.server.core
        self.network.run(self.network.clients[0].open(b"disk\n.img"))
        self.network.run(self.network.read_all(0, b"disk\n.img"))
        self.network.clock.advance(0.1)

    def figures(self) -> Any:
        """All figures."""
        return server_figures(self.core, tls=True, interface="192.0.2.1")

    def client(self, name: str) -> Any:
        """The row of a client."""
        (row,) = [row for row in self.figures()["clients"] if row["name"] == name]
        return row

    def test_totals(self) -> None:
        """The totals are those of the parts, and among all figures."""
        totals = server_totals(self.core, tls=True)
        self.assertEqual(totals["image_read_bytes"], MIB)
        self.assertEqual(totals["connections"], 2)
        self.assertIs(totals["tls"], True)
        self.assertGreater(self.core.controller.transfers, 0)
        self.assertEqual(totals["transfers"], self.core.controller.transfers)
        self.assertLessEqual(totals.items(), self.figures().items())

    def test_packed(self) -> None:
        """What was packed is shown in bytes of images, with its zeros."""
        self.network.library.put(b"zeros.img", bytes(2 * MIB))
        before = self.figures()["bytes_multicast"]
        self.network.run(self.network.read_all(0, b"zeros.img"))
        figures = self.figures()
        self.assertEqual(figures["image_bytes_multicast"], 3 * MIB)
        self.assertEqual(figures["bytes_zero"], 2 * MIB)
        self.assertLess(figures["bytes_multicast"] - before, MIB / 100)
        for name in ("bytes_compressed", "bytes_compressed_to", "compression_seconds"):
            self.assertEqual(figures[name], 0)

    def test_interface(self) -> None:
        """The interface is shown as it is given."""
        self.assertEqual(self.figures()["interface"], "192.0.2.1")

    def test_schema(self) -> None:
        """Each figure that is a metric is there, in each row of its table, too."""
        figures = self.figures()
        for figure in SERVER.figures:
            self.assertIn(figure.name, figures)
        for table in SERVER.tables:
            for row in figures[table.name]:
                for name in (*table.labels.values(), *(each.name for each in table.figures)):
                    self.assertIn(name, row)

    def test_clients(self) -> None:
        """A client is shown with what it asked for; before its first report it has read nothing."""
        reader, other = self.client("host0"), self.client("host1")
        self.assertGreater(reader["requests"], 0)
        self.assertEqual(other["reads"], 0)
        self.assertIs(other["over_tcp"], False)
        self.assertEqual((reader["images"], other["images"]), (1, 0))
        self.assertEqual((reader["image"], other["image"]), (r"disk\n.img", None))

    def test_reports(self) -> None:
        """What clients report is shown."""
        self.network.clock.advance(10)
        client = self.network.clients[0]
        self.assertEqual(
            self.client("host0")["reads"], client.remote.reads.deliveries.reads_and_hits[0]
        )
        self.assertGreater(self.client("host0")["reads"], 0)
        self.assertEqual(self.client("host0")["bytes_delivered"], MIB)
        self.assertEqual(self.figures()["bytes_delivered"], MIB)

    def test_images(self) -> None:
        """An image is shown by a name that is printable."""
        (image,) = self.figures()["images"]
        self.assertEqual((image["name"], image["opens"]), (r"disk\n.img", 1))
        self.assertEqual(image["bytes_requested"], MIB)
        self.assertIsInstance(image["demand"], int)

    def test_state(self) -> None:
        """The state is one line."""
        self.assertRegex(
            server_state(self.core),
            r"^clients: 2, of these over TCP: 0; queue: 0; rate: at most \d+ Mbit/s$",
        )

    def test_nobody_known(self) -> None:
        """Connections that have not said HELLO are counted, and are no clients."""
        self.core.factory.buildProtocol(None)
        self.assertEqual(len(self.figures()["clients"]), 2)
