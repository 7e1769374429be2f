"""The commands C{mufs-server} and C{mufs-client}: twistd's, run in the foreground."""

import sys

from twisted.scripts.twistd import run


def server() -> None:
    """C{twistd -n --pidfile= mufs-server}, with the options given."""
    _run("mufs-server")


def client() -> None:
    """C{twistd -n --pidfile= mufs-client}, with the options given."""
    _run("mufs-client")


def _run(command: str) -> None:
    sys.argv[1:1] = ["--nodaemon", "--pidfile=", command]
    run()
