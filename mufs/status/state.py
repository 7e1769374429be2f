"""What a service keeps over a restart: its figures of the last day, in a small file."""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
from twisted.logger import Logger

MAX_NAME_LENGTH = 200
"""Characters of the name of the file: those of most file systems have at most 255 bytes."""

MAX_STATE_BYTES = 1 << 20
"""Bytes of the file that are read; a day takes less than 100 KiB."""

Sample = tuple[float, dict[str, float]]
"""Time in seconds, and the numeric figures."""


class StateFile:
    """A file of samples. A fault of it is logged, and is no fault of the service."""

    _log = Logger()

    def __init__(self, directory: str, name: str) -> None:
        """@param name: of the service: several may share a directory."""
        self._path = Path(directory, f"{name[:MAX_NAME_LENGTH]}.json")
        self._failed = False

    def load(self) -> list[Sample]:
        """The samples; none if there is no file, or if it is damaged."""
        try:
            with open(self._path, "rb") as file:
                return msgspec.json.decode(file.read(MAX_STATE_BYTES), type=list[Sample])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            self._log.warn(
                "{path} cannot be used: {error}; the last day begins anew",
                path=str(self._path),
                error=getattr(error, "strerror", None) or error,
            )
            return []

    def save(self, samples: Iterable[Sample]) -> None:
        """Replace the file at once, or leave it as it is; a first failure is logged."""
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.encode(list(samples)))
            os.replace(new, self._path)
        except OSError as error:
            if not self._failed:
                self._log.warn(
                    "the last day cannot be kept in {path}: {error}",
                    path=str(self._path),
                    error=error.strerror,
                )
            self._failed = True
        else:
            self._failed = False
