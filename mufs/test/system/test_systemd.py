"""The systemd units and fstab, under a real systemd in a container."""

from __future__ import annotations

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mufs.commands.keys import make_keys
from mufs.test.support.processes import CHECKOUT, wait_until
from mufs.test.support.systemd import ETC, SHARED, Machine, Unbootable, why_unavailable

SERVER, CLIENT = "mufs-server", "mufs-client@mnt-images"
POINT = "/mnt/images"


class SystemdTests(SynchronousTestCase):
    """Server and client on one machine, by 127.0.0.1."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Boot a machine with the units, installed as the README says."""
        try:
            self.machine = machine = Machine()
        except Unbootable as error:
            raise SkipTest(str(error)) from None
        self.addCleanup(machine.close)
        self.units = machine.etc / "systemd" / "system"
        (machine.etc / "mufs").mkdir()
        for name in ("mufs-server.service", "mufs-client@.service"):
            shutil.copy(ETC / name, self.units)
        for name in ("mufs-server.env", "mufs-client.env"):
            text = (ETC / name).read_text()
            (machine.etc / "mufs" / name).write_text(
                re.sub("^MUFS_OPTIONS=$", "MUFS_OPTIONS=--interface 127.0.0.1", text, flags=re.M)
            )
        images = machine.root / "srv" / "images"
        images.mkdir(parents=True)
        self.content = os.urandom(1 << 20)
        (images / "disk.img").write_bytes(self.content)
        for path in (images.parent, images, machine.root / "mnt", machine.root / "mnt" / "images"):
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
        (images / "disk.img").chmod(0o644)
        # Needed if the checkout is in /tmp, because the unit has PrivateTmp=.
        self.drop_in("mufs-server.service", f"BindReadOnlyPaths={' '.join(SHARED)}")

    def use_tls(self, certificate: str) -> Path:
        """Have both use TLS, and return the directory of their certificates."""
        place = self.machine.etc / "mufs"
        keys = self.machine.directory / "keys"
        make_keys(keys, ["images.example.org"], ["host1"])
        shutil.copytree(keys, place, dirs_exist_ok=True)
        place.chmod(0o755)
        authority = "--tls-ca /etc/mufs/ca"
        (place / "mufs-server.env").write_text(
            f"MUFS_IMAGES=/srv/images\nMUFS_OPTIONS=--tls-cert {certificate} {authority}\n"
        )
        (place / "mufs-client.env").write_text(
            "MUFS_SERVER=images.example.org\n"
            f"MUFS_OPTIONS=--tls-cert /etc/mufs/host1.pem {authority}\n"
        )
        return place

    def drop_in(self, unit: str, *settings: str) -> None:
        """Add settings to a unit, as `systemctl edit` does."""
        directory = self.units / f"{unit}.d"
        directory.mkdir(exist_ok=True)
        number = len(list(directory.iterdir()))
        (directory / f"{number}.conf").write_text("\n".join(["[Service]", *settings, ""]))
        self.machine.run("systemctl", "daemon-reload")

    def entries(self, name: str) -> list[dict[str, Any]]:
        """Return the entries of a service in the journal."""
        self.machine.run("journalctl", "--sync")
        output = self.machine.run("journalctl", "-t", name, "-o", "json").stdout
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]

    def messages_at(self, priority: str, name: str) -> list[str]:
        """Return the messages of a service with this priority."""
        return [each["MESSAGE"] for each in self.entries(name) if each["PRIORITY"] == priority]

    def wait_for_entry(self, name: str, message: str) -> None:
        """Wait until a service has logged this message."""
        wait_until(lambda: message in [each["MESSAGE"] for each in self.entries(name)], 30, message)

    def is_another(self, unit: str, process: str) -> bool:
        """Return whether a unit has another main process than this one."""
        return self.machine.show(unit, "MainPID") not in ("0", process)

    def assert_read(self, path: str) -> None:
        """Assert that another process can read the image."""
        self.machine.run("cmp", f"{path}/disk.img", "/srv/images/disk.img")

    def test_start_and_stop(self) -> None:
        """
        A client stays in the state "activating" while its server is away, with the reason; both
        units become active when they serve, and leave nothing behind when stopped.
        """
        machine = self.machine
        machine.run("systemctl", "start", "--no-block", CLIENT)
        waiting = "waiting for the server at images.example.org:7040: Connection refused"
        wait_until(
            lambda: waiting in machine.show(CLIENT, "StatusText"),
            30,
            "the status says that it waits",
        )
        self.assertEqual(machine.show(CLIENT, "ActiveState"), "activating")
        machine.run("systemctl", "start", SERVER)
        self.assertEqual(machine.show(SERVER, "ActiveState"), "active")
        machine.run("systemctl", "start", CLIENT)
        self.assert_read(POINT)
        wait_until(
            lambda: "clients: 1," in machine.show(SERVER, "StatusText"),
            30,
            "the server has a client",
        )
        self.assertIn(f"mounted at {POINT}; connected", machine.show(CLIENT, "StatusText"))
        machine.run("test", "-d", "/run/mufs/server", "-a", "-d", "/run/mufs/client")
        machine.run("test", "-d", "/var/cache/mufs")
        uid = machine.run("stat", "-c", "%u", f"/proc/{machine.show(SERVER, 'MainPID')}").stdout
        self.assertNotEqual(uid.strip(), "0")

        (mounted,) = [each for each in self.entries("mufs-client") if "MUFS_MOUNT" in each]
        self.assertRegex(mounted["MESSAGE"], rf"\Amounted at {POINT}, by libfuse [23]\.\d+\Z")
        self.assertEqual(mounted["PRIORITY"], "6")
        self.assertEqual(mounted["_SYSTEMD_UNIT"], f"{CLIENT}.service")
        (warning,) = self.messages_at("4", "mufs-server")
        self.assertIn("no TLS", warning)
        self.assertEqual(self.messages_at("3", "mufs-server"), [])

        for unit in (CLIENT, SERVER):
            machine.run("systemctl", "stop", unit)
            self.assertEqual(machine.show(unit, "Result"), "success")
        self.assertEqual(machine.run("findmnt", POINT, check=False).stdout, "")

    def test_cache(self) -> None:
        """A client uses the cache directory that its unit makes, as in mufs-client.env."""
        machine = self.machine
        example = (ETC / "mufs-client.env").read_text()
        shown = re.search("^#(MUFS_OPTIONS=.*--cache-dir.*)$", example, re.M)
        assert shown is not None
        (machine.etc / "mufs" / "mufs-client@mnt-images.env").write_text(f"{shown[1]}\n")
        machine.run("systemctl", "start", SERVER, CLIENT)
        self.assert_read(POINT)
        self.assertIn("index", machine.run("ls", "/var/cache/mufs/mnt-images").stdout)

    def test_watchdog(self) -> None:
        """A service that hangs is restarted by the watchdog, and the mount works again."""
        machine = self.machine
        for unit in ("mufs-server.service", "mufs-client@.service"):
            self.drop_in(unit, "WatchdogSec=8", "RestartSec=100ms")
        machine.run("systemctl", "start", SERVER, CLIENT)
        stopped = {unit: machine.show(unit, "MainPID") for unit in (SERVER, CLIENT)}
        machine.run("kill", "-STOP", *stopped.values())
        for unit, process in stopped.items():
            wait_until(partial(self.is_another, unit, process), 60, f"{unit} is another process")
            machine.wait_for(unit, "ActiveState", "active")
            self.assertIn("Watchdog timeout", machine.run("journalctl", "-u", unit).stdout)
        self.assert_read(POINT)

    def test_killed(self) -> None:
        """A killed client is restarted, and mounts again."""
        machine = self.machine
        machine.run("systemctl", "start", SERVER, CLIENT)
        killed = machine.show(CLIENT, "MainPID")
        machine.run("kill", "-KILL", killed)
        wait_until(partial(self.is_another, CLIENT, killed), 30, "the client is another process")
        machine.wait_for(CLIENT, "ActiveState", "active")
        self.assert_read(POINT)

    def test_stopped_while_it_waits(self) -> None:
        """A client that waits for its server can be stopped without errors."""
        self.machine.run("systemctl", "start", "--no-block", CLIENT)
        wait_until(
            lambda: "waiting" in self.machine.show(CLIENT, "StatusText"), 30, "the client waits"
        )
        self.machine.run("systemctl", "stop", CLIENT)
        self.assertEqual(self.machine.show(CLIENT, "Result"), "success")

    def test_no_server(self) -> None:
        """A start that finds no server fails with the reason, and is made again and again."""
        machine = self.machine
        self.drop_in("mufs-client@.service", "TimeoutStartSec=12", "RestartSec=100ms")
        done = machine.run("systemctl", "start", CLIENT, check=False)
        self.assertEqual(done.returncode, 1)
        waiting = "waiting for the server at images.example.org:7040: Connection refused"
        self.assertIn(waiting, self.messages_at("4", "mufs-client")[-1])
        first = len(self.entries("mufs-client"))
        wait_until(lambda: len(self.entries("mufs-client")) > first, 30, "it is started again")
        machine.run("systemctl", "start", SERVER)
        machine.wait_for(CLIENT, "ActiveState", "active")
        self.assert_read(POINT)

    def test_in_vain(self) -> None:
        """A service that cannot start fails, with the reason in one line of the journal."""
        machine = self.machine
        self.drop_in("mufs-client@.service", "Restart=no")
        (machine.root / "mnt" / "images" / "file").touch()
        done = machine.run("systemctl", "start", CLIENT, check=False)
        self.assertEqual(done.returncode, 1)
        output = [each["MESSAGE"] for each in self.entries("mufs-client")]
        self.assertEqual(
            output,
            [
                f"mufs-client: --mount {POINT}: is not empty: give an empty directory, such as "
                "--mount /mnt/images"
            ],
        )

    def test_reload(self) -> None:
        """`systemctl reload` loads new certificates, ignores invalid ones, and ends nothing."""
        machine = self.machine
        place = self.use_tls("/etc/mufs/server.pem")
        with open(machine.etc / "group", "a") as groups:
            groups.write("mufs-keys:x:900:\n")
        os.chown(place / "server.pem", 0, 900)
        (place / "server.pem").chmod(0o640)
        self.drop_in("mufs-server.service", "SupplementaryGroups=mufs-keys")
        machine.run("systemctl", "start", SERVER, CLIENT)
        services = ((SERVER, "mufs-server", "server.pem"), (CLIENT, "mufs-client", "host1.pem"))
        for unit, name, certificate in services:
            machine.run("systemctl", "reload", unit)
            self.wait_for_entry(name, "certificates reloaded, for new connections")
            (place / certificate).write_text("nothing of use")
            machine.run("systemctl", "reload", unit)
            wait_until(partial(self.messages_at, "3", name), 30, f"{name} complains")
            machine.wait_for(unit, "SubState", "running")
        self.assert_read(POINT)

    def test_credential(self) -> None:
        """The server can use a key readable only by root through LoadCredential=."""
        self.use_tls("/run/credentials/mufs-server.service/server.pem")
        self.drop_in("mufs-server.service", "LoadCredential=server.pem:/etc/mufs/server.pem")
        self.machine.run("systemctl", "start", SERVER, CLIENT)
        self.assert_read(POINT)

    def test_documented_tls(self) -> None:
        """The recipe for TLS in docs/operations/systemd.md works, with both units on one host."""
        machine = self.machine
        page = (CHECKOUT / "docs" / "operations" / "systemd.md").read_text()
        recipe = page.partition("### Units with TLS\n")[2].partition("\n### ")[0]
        (setting,) = re.findall("^```ini\n(.*?)^```$", recipe, re.M | re.S)
        directory = self.units / "mufs-server.service.d"
        directory.mkdir(exist_ok=True)
        (directory / "tls.conf").write_text(setting)
        commands = re.findall("^    (.*)$", recipe, re.M)
        copies = [command for command in commands if command.startswith("scp ")]
        self.assertEqual(len(copies), 1)
        script = "\n".join(commands).replace("scp ", "cp ").replace("host1:", "")
        machine.run("sh", "-exc", f"cd /tmp; umask 022; PATH=/opt/mufs/bin:$PATH; {script}")
        self.assert_read(POINT)
        self.assertEqual(self.messages_at("4", "mufs-server"), [])

    def test_fstab(self) -> None:
        """An fstab mount is mounted at its first use, and its client ends with it."""
        machine = self.machine
        (machine.root / "mnt" / "auto").mkdir()
        (machine.etc / "fstab").write_text(
            "images.example.org:/ /mnt/auto fuse.mufs "
            "allow_other,_netdev,nofail,x-systemd.automount 0 0\n"
        )
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", SERVER)
        machine.run("systemctl", "start", "mnt-auto.automount")
        self.assertEqual(machine.show("mnt-auto.mount", "ActiveState"), "inactive")
        self.assert_read("/mnt/auto")
        self.assertEqual(machine.show("mnt-auto.mount", "ActiveState"), "active")
        shown = machine.run("findmnt", "-no", "SOURCE,FSTYPE", "-t", "fuse.mufs").stdout.split()
        self.assertEqual(shown, ["images.example.org:/", "fuse.mufs"])
        machine.run("systemctl", "stop", "mnt-auto.automount", "mnt-auto.mount")
        self.assertEqual(machine.show("mnt-auto.mount", "Result"), "success")
        self.wait_for_entry("mufs-client", "unmounted: ending")

    def test_fstab_user(self) -> None:
        """With the option user, a user can mount, read and unmount."""
        machine = self.machine
        point = machine.root / "mnt" / "user"
        point.mkdir()
        os.chown(point, 1000, 1000)
        with open(machine.etc / "passwd", "a") as users:
            users.write("joe:x:1000:1000:joe:/:/bin/sh\n")
        (machine.etc / "fstab").write_text("images.example.org:/ /mnt/user mufs noauto,user 0 0\n")
        machine.run("systemctl", "start", SERVER)
        joe = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
        machine.run(*joe, "mount", "/mnt/user")
        machine.run(*joe, "cmp", "/mnt/user/disk.img", "/srv/images/disk.img")
        machine.run(*joe, "umount", "/mnt/user")
        self.wait_for_entry("mufs-client", "unmounted: ending")

    def test_fstab_in_vain(self) -> None:
        """Without a server the mount unit fails, with the reason in the journal."""
        machine = self.machine
        (machine.etc / "fstab").write_text(
            f"images.example.org:/ {POINT} mufs timeout=1,_netdev,nofail 0 0\n"
        )
        machine.run("systemctl", "daemon-reload")
        done = machine.run("systemctl", "start", "mnt-images.mount", check=False)
        self.assertEqual(done.returncode, 1)
        output = machine.run("journalctl", "-u", "mnt-images.mount").stdout
        self.assertIn("mount.mufs: images.example.org:/: not within 1 s: waiting for", output)
