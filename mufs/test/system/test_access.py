"""Access to images by certificates and by users, over TLS and through real mounts."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from mufs.commands.keys import make_keys
from mufs.communication.client.channel import ClientChannel
from mufs.test.support.loopback import make_loopback, why_unavailable
from mufs.test.support.processes import wait_until
from mufs.test.system.test_tls import LOCAL, TLSTestCase
from mufs.wire.channel import Type
from mufs.wire.metadata import At, Attributes, Names, Opened, Statistics


class OverTLSTests(TLSTestCase):
    """Two clients of a server that shares different directories with them."""

    async def clients(self) -> list[ClientChannel]:
        """Connect a client that may see everything, and one that may see a subdirectory."""
        make_keys(self.own, [], ["other.org"])
        port = await self.listen(rules=("*.lab:/", "other.org:/free"))
        channels = []
        for name in ("host1.lab", "other.org"):
            user = await self.connect(f"tls:{LOCAL}:{port}:{self.certificate(name)}")
            assert user.channel is not None
            channels.append(user.channel)
        return channels

    async def refused(self) -> None:
        one, other = await self.clients()
        listing = await one.ask(Type.READDIR, At(b""), Names)
        self.assertEqual([name for name, _ in listing.entries], [b"secret-name.img"])
        opened = await one.ask(Type.OPEN, At(b"secret-name.img"), Opened)
        self.assertEqual(len(opened.key), 16)
        found = await other.ask(Type.STATFS, At(b""), Statistics)
        self.assertEqual(found.blocks, 0)
        answers: dict[Type, Any] = {
            Type.OPEN: Opened,
            Type.GETATTR: Attributes,
            Type.READDIR: Names,
        }
        for kind, answer in answers.items():
            request: Deferred[Any] = other.ask(kind, At(b"secret-name.img"), answer)
            try:
                await request
            except OSError as error:
                self.assertEqual(error.errno, errno.ENOENT)
            else:
                self.fail(f"{kind} was answered")

    def test_refused(self) -> Deferred[None]:
        """A client gets neither the name nor the key of an image that it may not see."""
        return ensureDeferred(self.refused())

    async def nothing_shared(self) -> None:
        port = await self.listen(rules=("other.org:/",))
        user = await self.connect(f"tls:{LOCAL}:{port}:{self.certificate()}")
        self.assertIsNone(user.channel)
        self.assertIn("nothing is shared with host1.lab", str(user.refusal))

    def test_nothing_shared(self) -> Deferred[None]:
        """A client without a matching rule is refused with the reason."""
        return ensureDeferred(self.nothing_shared())


class MountTests(SynchronousTestCase):
    """Mounts of clients with different access."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Make keys, and images for everybody, for root, for a user, and for a group."""
        self.loopback = make_loopback(self)
        self.keys = self.loopback.directory / "keys"
        make_keys(self.keys, [LOCAL], ["one", "two"])
        self.content = os.urandom(3 << 20)
        for name, mode, uid, gid in (
            ("all.img", 0o644, 0, 0),
            ("root.img", 0o600, 0, 0),
            ("user.img", 0o600, 1234, 0),
            ("group.img", 0o640, 0, 4321),
            ("free/small.img", 0o644, 0, 0),
        ):
            file = self.loopback.images / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(self.content)
            file.chmod(mode)
            os.chown(file, uid, gid)

    def start_server(self, *options: str) -> None:
        """Start or restart the server."""
        trust = f"trustRoots={self.keys}/ca:interface={LOCAL}"
        listen = f"tls:{self.loopback.port}:certificate={self.keys}/server.pem:{trust}"
        self.server = self.loopback.start_server(options=("--listen", listen, *options))

    def start_client(self, name: str) -> Path:
        """Start a client with the certificate of that name, and return its mount point."""
        certificate = f"certificate={self.keys}/{name}.pem:trustRoots={self.keys}/ca"
        server = f"tls:{LOCAL}:{self.loopback.port}:{certificate}"
        self.loopback.start_client(name, "--server", server, "--allow-other")
        return self.loopback.mount_point(name)

    def read_as(self, path: Path, uid: int, *groups: int) -> str:
        """Read a file as a user with these groups, and return "fine" or the errno's name."""
        done = subprocess.run(
            ["cat", str(path)],
            user=uid,
            group=uid,
            extra_groups=groups,
            cwd="/",
            capture_output=True,
            timeout=60,
        )
        if b"Permission denied" in done.stderr:
            return "EACCES"
        return "fine" if done.stdout == self.content else f"{done}"[-500:]

    def test_shown(self) -> None:
        """
        A client that may not see an image learns nothing of it, and keeps nothing of its transfers
        to the group.
        """
        self.start_server("--allow", "one:/", "--allow", "tw*:/free")
        one, two = self.start_client("one"), self.start_client("two")
        # Have it join the group, and get the key of another image.
        self.assertEqual((two / "free" / "small.img").read_bytes(), self.content)
        service = self.loopback.services["two"]
        before = service.status()
        self.assertEqual((one / "all.img").read_bytes(), self.content)
        wait_until(
            lambda: service.status()["segments_received"] > before["segments_received"] + 500,
            20,
            "two receives what one reads",
        )
        after = service.status()
        self.assertEqual(after["bytes_overheard"], before["bytes_overheard"])
        self.assertEqual(after["cache_bytes"], before["cache_bytes"])
        self.assertEqual(os.listdir(two), ["free"])
        self.assertRaises(FileNotFoundError, os.stat, two / "all.img")
        self.assertEqual(os.statvfs(two).f_blocks, 0)
        self.assertEqual(len(os.listdir(one)), 5)
        names = [client["name"] for client in self.server.status()["clients"]]
        self.assertEqual(sorted(names), ["one", "two"])
        self.assertIn("two connected from", self.server.output)

    def test_rules_read_again(self) -> None:
        """At SIGHUP the rules of a file are read again: what they withdraw is gone at once."""
        rules = self.loopback.directory / "rules"
        rules.write_text("one:/\none:/nowhere\n")
        self.start_server("--allow-from", str(rules))
        one = self.start_client("one")
        self.assertIn("access rule one:/nowhere: there is no such path", self.server.output)
        kept = os.open(one / "free/small.img", os.O_RDONLY)
        self.addCleanup(os.close, kept)
        lost = os.open(one / "all.img", os.O_RDONLY)
        self.addCleanup(os.close, lost)
        self.assertEqual(os.pread(lost, 4096, 0), self.content[:4096])
        rules.write_text("one\n")
        self.server.signal(signal.SIGHUP)
        wait_until(lambda: "line 1, one, is not" in self.server.output, 20, "a mistake is told")
        self.assertEqual(len(os.listdir(one)), 5)
        rules.write_text("one:/free\n")
        self.server.signal(signal.SIGHUP)
        wait_until(lambda: os.listdir(one) == ["free"], 20, "the new rules count")
        self.assertEqual(os.pread(kept, 4096, 2 << 20), self.content[2 << 20 :][:4096])
        self.assertRaises(OSError, os.pread, lost, 4096, 2 << 20)

    def test_rule_gone(self) -> None:
        """A mounted client that no rule names any more stays, says so once, and goes on later."""
        self.start_server("--allow", "one:/")
        mount = self.start_client("one")
        self.assertEqual((mount / "free" / "small.img").read_bytes(), self.content)
        self.server.stop()
        self.start_server("--allow", "someone:/")
        client = self.loopback.services["one"]
        client.wait_until(lambda: "nothing is shared with one" in client.output, 20, "is refused")
        client.wait_until(lambda: client.status()["why_disconnected"], 20, "says why")
        self.assertIn("nothing is shared", client.status()["why_disconnected"])
        self.assertEqual((mount / "free" / "small.img").read_bytes(), self.content)
        time.sleep(3)
        self.assertEqual(client.output.count("nothing is shared with one"), 1)
        self.server.stop()
        self.start_server("--allow", "one:/")
        self.assertEqual((mount / "all.img").read_bytes(), self.content)

    def test_callers(self) -> None:
        """By default root is squashed, and other users have the access of their UID and groups."""
        self.start_server()
        mount = self.start_client("one")
        for name, uid, groups, expected in (
            ("all.img", 0, (), "fine"),
            ("root.img", 0, (), "EACCES"),
            ("user.img", 0, (), "EACCES"),
            ("user.img", 1234, (), "fine"),
            ("user.img", 1235, (), "EACCES"),
            ("group.img", 1235, (4321,), "fine"),
            ("group.img", 1235, (), "EACCES"),
        ):
            self.assertEqual(self.read_as(mount / name, uid, *groups), expected, (name, uid))

    def test_no_root_squash(self) -> None:
        """With C{--no-root-squash} root reads everything; with C{--all-squash} all are nobody."""
        self.start_server("--no-root-squash")
        mount = self.start_client("one")
        self.assertEqual(self.read_as(mount / "root.img", 0), "fine")
        self.server.stop()
        self.start_server("--all-squash")
        self.assertEqual(self.read_as(mount / "user.img", 1234), "EACCES")
        self.assertEqual(self.read_as(mount / "all.img", 1234), "fine")

    def test_opened_again(self) -> None:
        """After a restart of the server, a file is reopened with the credentials of its opener."""
        self.start_server()
        mount = self.start_client("one")
        os.seteuid(1234)
        try:
            file = os.open(mount / "user.img", os.O_RDONLY)
        finally:
            os.seteuid(0)
        self.addCleanup(os.close, file)
        self.assertEqual(os.pread(file, 4096, 0), self.content[:4096])
        self.server.kill()
        self.start_server()
        self.assertEqual(os.pread(file, 4096, 2 << 20), self.content[2 << 20 :][:4096])
        self.assertEqual(os.fstat(file).st_size, len(self.content))
