"""Images of which much is zero and the rest compresses, on a real network."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from random import Random

from mufs.test.support.lab import SERVER, Lab
from mufs.test.support.processes import wait_until
from mufs.test.system.test_network import MAX_OVERHEAD, MIB, LabTestCase

PART = MIB + 4096 + 5
"""Bytes of each kind in a row: its ends lie within pages, blocks and extents."""


def write_packable(path: Path, size: int, seed: int) -> str:
    """Write text, zeros, random bytes and text again, a fifth random; return its SHA-256."""
    random = Random(seed)
    text = b"".join(b"%d: %d\n" % (seed, random.randrange(1 << 30)) for _ in range(PART // 10))
    kinds = [text[:PART], bytes(PART), random.randbytes(PART), bytes(PART), text[-PART:]]
    digest = hashlib.sha256()
    with open(path, "wb") as image:
        for begin in range(0, size, PART):
            data = kinds[begin // PART % len(kinds)][: size - begin]
            digest.update(data)
            image.write(data)
    return digest.hexdigest()


class PackingTests(LabTestCase):
    """Links of 50 Mbit/s, which a processor outruns when it compresses."""

    def make_packable(self, hosts: int, *options: str) -> Lab:
        """A lab whose image packs to less than half."""
        lab = self.make_lab(hosts, 1, rate=50)
        self.size = 24 * MIB + 2049
        self.sha256 = write_packable(lab.images / "disk.img", self.size, 1)
        self.server = lab.start_server(*options)
        return lab

    def test_shared(self) -> None:
        """Four hosts get the right bytes, and less than half as many are sent, once for all."""
        lab = self.make_packable(4)
        lab.start_clients()
        self.assertLess(self.read_all(lab), 0.5 * self.size + MAX_OVERHEAD)

    def test_off(self) -> None:
        """Without compression the zeros are left out, and nothing else."""
        lab = self.make_packable(2, "--compress", "off")
        lab.start_clients()
        sent = self.read_all(lab)
        self.assertGreater(sent, 0.55 * self.size)
        self.assertLess(sent, 0.75 * self.size + MAX_OVERHEAD)

    def test_loss(self) -> None:
        """With 2 % of the datagrams lost, all bytes are right."""
        lab = self.make_packable(3, "--compress", "3")
        lab.start_clients()
        for host in lab.hosts:
            lab.network.set_loss(host, 20)
        self.read_all(lab)

    def test_over_tcp(self) -> None:
        """A host that multicast does not reach gets no zeros either."""
        lab = self.make_packable(1)
        lab.network.set_loss("host1", 1000)
        (client,) = lab.start_clients()
        sent = self.read_all(lab)
        self.assertLess(sent, 0.85 * self.size + MAX_OVERHEAD)
        self.assertEqual(client.status()["segments_received"], 0)

    def test_disturbed(self) -> None:
        """A host that begins late, a server that is killed: all bytes are right."""
        lab = self.make_packable(3, "--compress", "1")
        lab.start_clients()
        readers = [lab.start_reader("host1", "disk.img"), lab.start_reader("host2", "disk.img")]
        before = lab.network.bytes_sent(SERVER)
        wait_until(
            lambda: lab.network.bytes_sent(SERVER) - before > self.size // 8,
            60,
            "an eighth is sent",
        )
        self.server.kill()
        lab.start_server("--compress", "off")
        late = lab.start_reader("host3", "disk.img")
        self.assert_right([reader.result() for reader in (*readers, late)])

    def test_replaced(self) -> None:
        """An image that is replaced gives its old bytes or ESTALE, and the new ones when opened."""
        lab = self.make_packable(1)
        lab.start_client("host1", "--cache-size", "4M")
        reader = lab.start_reader("host1", "disk.img", pause=MIB)
        reader.wait_paused()
        sha256 = write_packable(lab.images / "new.img", self.size, 2)
        os.replace(lab.images / "new.img", lab.images / "disk.img")
        before = reader.result()
        if before.error != "ESTALE":
            self.assert_right([before])
        self.sha256 = sha256
        self.read_all(lab)
