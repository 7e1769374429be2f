"""What a service is, and since when it runs."""

import platform
import socket
import time

from mufs import __version__


class About:
    """The figures that tell one service from another, beside what it counts."""

    def __init__(self, libfuse: str = "") -> None:
        """
        The service starts now.

        @param libfuse: the version of libfuse, where it is used.
        """
        self._libfuse = libfuse
        self._started = time.time()
        self._began = time.monotonic()

    def figures(self) -> dict[str, object]:
        """
        The version, those of Python and libfuse, the name of this host; when the service started,
        in seconds since 1970, and for how many seconds it has run.
        """
        return {
            "version": __version__,
            "python": platform.python_version(),
            "libfuse": self._libfuse,
            "host": socket.gethostname(),
            "started": self._started,
            "uptime": time.monotonic() - self._began,
        }
