"""Wrong command lines: each ends with one line that says what is wrong, with a right example."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mufs.cache.client.directory import CacheDirectory
from mufs.commands.keys import make_keys
from mufs.sockets import VARIABLE

BIN = os.path.dirname(sys.executable)
PROGRAMS = ("mufs", "mufs-server", "mufs-client", "mount.mufs", "twistd")

SERVER = """
mufs-server --images {top}/none | --images {top}/none
mufs-server --images {top}/file | --images {top}/file
mufs-server | --images is required
mufs-server --images | --images needs a value
mufs-server --images {images} 7040 | 7040 does not belong to any option
mufs-server --imags {images} | did you mean --images
mufs-server --images {images} --al | --al may stand for --all-squash or --allow
mufs-server --images {images} -x | no option -x
mufs-server --images {images} --all-squash=yes | --all-squash takes no value
mufs-server --images {images} --listen 99999 | port 99999
mufs-server --images {images} --listen tcp:http | port http
mufs-server --images {images} --listen tcp:7040:interfaces=lo | interfaces= is not known
mufs-server --images {images} --listen 10.1.2.3:0 | no address 10.1.2.3
mufs-server --images {images} --listen 127.0.0.1:{taken} | port {taken} is in use
mufs-server --images {images} --listen ssl:7040:privateKey=x | does not check who connects
mufs-server --images {images} --listen tls:7040:certificate={keys}/server.pem | trustRoots=
mufs-server --images {images} --tls-cert {keys}/server.pem | --tls-cert needs --tls-ca
mufs-server --images {images} --tls-cert {keys}/none.pem --tls-ca {keys}/ca | none.pem: No such
mufs-server --images {images} --tls-cert {keys}/ca/ca.pem --tls-ca {keys}/ca | holds no private key
mufs-server --images {images} --tls-cert {keys}/server.pem --tls-ca {images} | no *.pem in {images}
mufs-server --images {images} --group 10.0.0.1 | --group 10.0.0.1
mufs-server --images {images} --group all | --group all
mufs-server --images {images} --port 0 | port 0
mufs-server --images {images} --rate-max fast | --rate-max fast
mufs-server --images {images} --rate 100X | --rate may stand for --rate-max or --rate-min
mufs-server --images {images} --rate-min 0 | --rate-min 0: is not above 0
mufs-server --images {images} --rate-min 11G | more than --rate-max 10G
mufs-server --images {images} --interface 10.1.2.3 | --interface 10.1.2.3
mufs-server --images {images} --interface a-name-too-long-for-one | --interface a-name
mufs-server --images {images} --allow host1:/ | --allow needs TLS
mufs-server --images {images} --allow nonsense | --allow nonsense: is not of the form
mufs-server --images {images} --allow-from {top}/file | --allow-from needs TLS
mufs-server --images {images} {tls} --allow-from {top}/file | line 1, text, is not of the form
mufs-server --images {images} {tls} --allow-from {top}/none | --allow-from {top}/none
mufs-server --images {images} --state {top}/file/x | --state {top}/file/x
mufs-server --images {images} --status http | --status http
mufs-server --images {images} --status 127.0.0.1 | the port is missing
mufs-server --images {images} --listen 0 --status {taken} | port {taken} is in use
twistd -n --pidfile= mufs-server --images {top}/none | --images {top}/none
twistd -n --pidfile= mufs-server --images {images} --nonsense | no option --nonsense
"""

CLIENT = """
mufs-client --mount {mount} | --server is required
mufs-client --server tcp:192.0.2.1 --mount {mount} | the port is missing
mufs-client --server tcp:h:port --mount {mount} | port port is not a number
mufs-client --server h:99999 --mount {mount} | port 99999
mufs-client --server tcp:h:99999 --mount {mount} | port 99999
mufs-client --server 192.0.2 --mount {mount} | 192.0.2 is not an IPv4 address
mufs-client --server fd00::1 --mount {mount} | brackets
mufs-client --server http://h:7040 --mount {mount} | http://h:7040
mufs-client --server 'a{newline}b' --mount {mount} | is not the name
mufs-client --server '' --mount {mount} | --server is required
mufs-client --server tls:h:7040:cert={keys}/host1.pem --mount {mount} | cert= is not known
mufs-client --server tls:h:7040:certificate={top}/file --mount {mount} | {top}/file holds no cert
mufs-client --server tcp:h:7040 --tls-cert {keys}/host1.pem --mount {mount} | not with endpoint
mufs-client --server h --tls-ca {keys}/ca --mount {mount} | --tls-ca needs --tls-cert
mufs-client --server h --tls-cert {keys}/host1.pem --tls-ca {top}/none --mount {mount} | --tls-ca
mufs-client --server h --mount {top}/none | --mount {top}/none
mufs-client --server h --mount {top}/file | --mount {top}/file
mufs-client --server h --mount {top} | is not empty
mufs-client --server h --mount {mount} --cache-size 1X | --cache-size 1X
mufs-client --server h --mount {mount} --cache-size 0 | --cache-size 0
mufs-client --server h --mount {mount} --cache-size 900T | more than the memory
mufs-client --server h --mount {mount} --timeout abc | --timeout abc
mufs-client --server h --mount {mount} --interface 192.0.2 | --interface 192.0.2
mufs-client --server h --mount {mount} --cache-dir {top}/none/cache | --cache-dir {top}/none/cache
mufs-client --server h --mount {mount} --cache-dir {used} | a client uses it
mufs-client --server h --mount {mount} --cache-dir {top} | is not empty
mufs-client --server h --mount {mount} --status 99999 | port 99999
mufs-client --server h --mount {mount} --allow-others | did you mean --allow-other
twistd -n --pidfile= mufs-client --server tcp:h --mount {mount} | the port is missing
"""

MOUNT = """
mount.mufs | such as `mount -t mufs images.example.org:/ /mnt/images`
mount.mufs h {mount} | h is not of the form HOST:/
mount.mufs 'a{newline}b:/' {mount} | is not the name
mount.mufs h:/disks {mount} | mounted as a whole
mount.mufs fd00::1:/ {mount} | brackets
mount.mufs h:7040:/ {mount} | -o port=7040
mount.mufs h:/ {mount} -o sise=1 | sise=1: is unknown
mount.mufs h:/ {mount} -o port=http | port http
mount.mufs h:/ {mount} -o cache_size | has no value
mount.mufs h:/ {mount} -o allow_other=1 | takes no value
mount.mufs h:/ {mount} -o timeout=abc | timeout=abc
mount.mufs h:/ {mount} -o certificate=x | is tls_cert= now
mount.mufs h:/ {mount} -o cache_size=1X | --cache-size 1X
mount.mufs h:/ {top}/none | --mount {top}/none
"""

TOOLS = """
mufs | required: COMMAND
mufs status 'a{newline}b' | is not on a mount
mufs statsu | did you mean status
mufs xyz | no command xyz
mufs status --wach | --wach
mufs status --watch abc | abc
mufs status nowhere | nowhere is not on a mount
mufs status h:port | h:port is neither
mufs status 99999 | 99999
mufs pull {top}/file | {top}/file is not on a mount
mufs pull | required: IMAGE
mufs cache lst {top} | did you mean ls
mufs cache ls {top}/none | {top}/none
mufs cache rm {top} | required
mufs cache rm {top} --unused abc | abc
mufs check --server tcp:192.0.2.1 | the port is missing
mufs check --server h:99999 | port 99999
mufs check --seconds abc | --seconds: abc
mufs check --interface 10.1.2.3 | --interface 10.1.2.3
mufs check --sever h | --sever
mufs check --tls-cert {keys}/host1.pem | --tls-cert needs --server
mufs keys lss | did you mean ls
mufs keys renew h9 --dir {keys} | no certificate of h9
mufs keys revoke host9 --dir {keys} | no certificate of host9
mufs keys --server 'a c' | a c
mufs keys | --server
"""

PYTHON = re.compile(
    r"Traceback|[Ee]rrno|invalid literal|could not convert|NoneType|object at|Error\b|Exception|"
    r"<[\w. ]+>|\bb'|\\x|argument of type|twisted|builtins|self\.|_[a-z]+ value|\(\)"
)
"""What may be in a message of Python or of a library, and in none of mUFS."""


RUNNER = """
import json, os, runpy, signal, sys, tempfile
import cryptography.x509, numpy, OpenSSL.SSL, prometheus_client, rich.progress
import twisted.internet.endpoints, twisted.internet.ssl, twisted.scripts.twistd, twisted.web.server
ended = []
for command in json.load(sys.stdin):
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            signal.alarm(60)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            os.dup2(said.fileno(), 2)
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
            sys.exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        ended.append([status, said.read().decode()])
json.dump(ended, sys.stdout)
"""
"""
Runs programs, and tells status and standard error of each. It has imported the libraries that they
need, but no reactor: to start each anew would take most of the time.
"""


class WrongCommandTests(SynchronousTestCase):
    """The programs as they are installed; nothing is mounted, and no server is reached."""

    skip = None if all(os.path.exists(f"{BIN}/{name}") for name in PROGRAMS) else "not installed"

    def setUp(self) -> None:
        """Make what the command lines name."""
        self.top = Path(tempfile.mkdtemp(prefix="mufs-words-"))
        self.addCleanup(shutil.rmtree, self.top)
        for name in ("images", "mount"):
            (self.top / name).mkdir()
        (self.top / "file").write_text("text\n")
        make_keys(self.top / "keys", ["h"], ["host1"])
        used = CacheDirectory(str(self.top / "used"), "tcp:h:7040")
        self.addCleanup(used.close)
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        self.names = {
            **{name: str(self.top / name) for name in ("images", "mount", "keys", "used")},
            "top": str(self.top),
            "newline": "\n",
            "tls": f"--tls-cert {self.top}/keys/server.pem --tls-ca {self.top}/keys/ca",
            "taken": str(taken.getsockname()[1]),
        }

    def assert_words(self, lines: str) -> None:
        """Each command line ends with one line, and status not zero."""
        asked = []
        for line in lines.strip().splitlines():
            typed, _, telling = line.format(**self.names).partition(" | ")
            program, *arguments = shlex.split(typed)
            asked.append(([f"{BIN}/{program}", *arguments], telling))
        runner = subprocess.run(
            [sys.executable, "-c", RUNNER],
            cwd=self.top, input=json.dumps([command for command, _ in asked]),
            env={**os.environ, VARIABLE: str(self.top / "run")},
            stdout=subprocess.PIPE, text=True, timeout=300, check=True,
        )  # fmt: skip
        ended = json.loads(runner.stdout)
        wrong = []
        for (command, telling), (status, said) in zip(asked, ended, strict=True):
            one_line = said.count("\n") == 1 and said.endswith("\n")
            told = "such as " in said and telling in said and not PYTHON.search(said)
            if status not in (1, 2, 32) or not one_line or not told:
                wrong.append(f"{shlex.join(command)}: {status}, {telling!r} expected: {said}")
        self.assertEqual("\n".join(wrong), "")

    def test_rights(self) -> None:
        """A key that may not be read, and a port that only root may use, are told as such."""
        if os.geteuid() or shutil.which("setpriv") is None:
            raise SkipTest("needs root and setpriv")
        key = self.top / "keys/server.pem"
        key.chmod(0)
        rights = "-dac_override,-dac_read_search,-net_bind_service"
        server = [f"{BIN}/mufs-server", "--images", str(self.top / "images"), "--listen"]
        unprivileged = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
        for options, telling in (
            (
                ["0", "--tls-cert", str(key), "--tls-ca", f"{self.top}/keys/ca"],
                f"--tls-cert {key}: ",
            ),
            (["127.0.0.1:1"], "only root may use port 1"),
        ):
            if telling.endswith("port 1") and int(unprivileged) <= 1:
                continue  # as in many containers
            done = subprocess.run(
                ["setpriv", f"--inh-caps={rights}", f"--bounding-set={rights}", *server, *options],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                env={**os.environ, VARIABLE: str(self.top / "run")},
            )  # fmt: skip
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertIn(telling, done.stderr)
            self.assertIn("such as ", done.stderr)

    def test_server(self) -> None:
        """Wrong command lines of mufs-server."""
        self.assert_words(SERVER)

    def test_client(self) -> None:
        """Wrong command lines of mufs-client."""
        self.assert_words(CLIENT)

    def test_mount(self) -> None:
        """Wrong command lines of mount.mufs."""
        self.assert_words(MOUNT)

    def test_tools(self) -> None:
        """Wrong command lines of mufs."""
        self.assert_words(TOOLS)
