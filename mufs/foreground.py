"""
The commands C{mufs-server} and C{mufs-client}: twistd's, run in the foreground.

Twisted is imported only in L{_run}: that takes a while, and by then an interrupt has its handler.
"""

import os
import signal
import sys
from functools import partial
from typing import NoReturn


def server() -> None:
    """C{twistd -n --pidfile= mufs-server}, with the options given."""
    _run("mufs-server")


def client() -> None:
    """C{twistd -n --pidfile= mufs-client}, with the options given."""
    _run("mufs-client")


def _run(command: str) -> None:
    # Until the service is made (mufs.ending), when Python would print where it was interrupted.
    signal.signal(signal.SIGINT, partial(_interrupted, command))
    from twisted.scripts.twistd import run

    sys.argv[1:1] = ["--nodaemon", "--pidfile=", command]
    try:
        run()
    except KeyboardInterrupt:
        _interrupted(command)


def _interrupted(command: str, *_: object) -> NoReturn:
    os.write(2, f"{command}: interrupted\n".encode())
    os._exit(128 + signal.SIGINT)
