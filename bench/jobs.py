"""Timed commands on hosts: they begin at one moment, and report when they were done."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import attrs

from mufs.test.support.netns import LabError

COPIER = """
import json, os, resource, subprocess, sys, time
start, copy, whole, *command = sys.argv[1:]
start, whole, began = float(start), int(whole), 0.0
time.sleep(max(0.0, start - time.monotonic()))
process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
while process.poll() is None:
    size = os.stat(copy).st_size if os.path.exists(copy) else 0
    if size and not began:
        began = time.monotonic() - start
    if whole and size >= whole:
        break
    time.sleep(0.003)
seconds = time.monotonic() - start
status = process.wait()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
error = f"ended with status {status}" if status else ""
cpu = used.ru_utime + used.ru_stime
print(json.dumps(dict(seconds=seconds, began=began, cpu=cpu, error=error)))
"""
"""Runs a command that copies.

It is done when the command ends or, if a size is given, when the copy has that size.
"""


@attrs.frozen
class Done:
    """How a job ended."""

    seconds: float
    """From the moment at which it was to begin until it was done."""
    cpu: float
    """Seconds of processor time that it used."""
    began: float = 0.0
    """When the first byte was in the copy, counted from the same moment."""
    error: str = ""
    sha256: str | None = None
    """Of the received bytes, if the job computes it."""


class Job:
    """A Python program that begins at a given moment, and prints a `Done` as JSON."""

    def __init__(self, name: str, enter: list[str], script: str, *arguments: object) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [*enter, sys.executable, "-I", "-S", "-c", script, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def result(self, timeout: float) -> Done:
        """Wait for its end; raise `LabError` if it fails or takes longer than `timeout` seconds."""
        try:
            output, log = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _, log = self._process.communicate()
            raise LabError(f"{self.name}: not within {timeout:.0f} s\n{log}") from None
        try:
            figures: dict[str, Any] = json.loads(output)
        except ValueError:
            raise LabError(f"{self.name}: {output}\n{log}") from None
        done = Done(**figures)
        if done.error:
            raise LabError(f"{self.name}: {done.error}\n{log}")
        return done
