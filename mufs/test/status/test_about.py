"""What a service is, and since when it runs."""

import platform
import socket
import time

from twisted.trial.unittest import SynchronousTestCase

from mufs import __version__
from mufs.status.about import About


class AboutTests(SynchronousTestCase):
    """The figures that tell services apart."""

    def test_figures(self) -> None:
        """They have the versions, the host, and the time since the start."""
        now, past = [1000.0], [50.0]
        self.patch(time, "time", lambda: now[0])
        self.patch(time, "monotonic", lambda: past[0])
        about = About("2.9")
        past[0] += 7
        now[0] -= 3600
        self.assertEqual(about.figures(), {
            "version": __version__, "python": platform.python_version(), "libfuse": "2.9",
            "host": socket.gethostname(), "started": 1000.0, "uptime": 7.0,
        })  # fmt: skip
