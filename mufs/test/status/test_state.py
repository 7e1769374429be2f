"""The figures of the last day, in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mufs.status.state import MAX_NAME_LENGTH, StateFile

SAMPLES = [(1.5, {"bytes": 3.0}), (2.5, {"bytes": 4.0, "lost": 0.0})]


class StateFileTests(SynchronousTestCase):
    """A file of samples."""

    def setUp(self) -> None:
        """Have a directory, and read the log."""
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.state = StateFile(str(self.directory), "mufs-client-mnt")
        self.file = self.directory / "mufs-client-mnt.json"
        self.lines: list[str] = []

        def note(event: LogEvent) -> None:
            self.lines.append(str(formatEvent(event)))

        observer: Any = note
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def test_kept(self) -> None:
        """What is saved is there again, and nothing else is left in the directory."""
        self.assertEqual(self.state.load(), [])
        for samples in (SAMPLES[:1], SAMPLES):
            self.state.save(samples)
            self.assertEqual(StateFile(str(self.directory), "mufs-client-mnt").load(), samples)
        self.assertEqual(os.listdir(self.directory), [self.file.name])
        self.assertEqual(self.lines, [])

    def test_damaged(self) -> None:
        """A damaged file is a line of the log, and no samples; it is replaced later."""
        for content in (b"", b"{", b'[[1, {"bytes": "x"}]]', b"[" * 100_000, b"\xff"):
            self.file.write_bytes(content)
            self.assertEqual(self.state.load(), [])
            line = self.lines.pop()
            self.assertIn("mufs-client-mnt.json cannot be used: ", line)
            self.assertTrue(line.endswith("; the last day begins anew"))
        self.state.save(SAMPLES)
        self.assertEqual(self.state.load(), SAMPLES)

    def test_cannot_be_written(self) -> None:
        """When the file cannot be written that is logged once, until it could be written again."""
        blocked = self.file.with_suffix(".new")
        for _ in range(2):
            blocked.mkdir()
            for _ in range(3):
                self.state.save(SAMPLES)
            (line,) = self.lines
            self.assertIn("the last day cannot be kept in ", line)
            blocked.rmdir()
            self.state.save(SAMPLES)
            self.lines.clear()

    def test_long_name(self) -> None:
        """The name of the file fits any file system."""
        state = StateFile(str(self.directory), "x" * 1000)
        state.save(SAMPLES)
        self.assertEqual(os.listdir(self.directory), ["x" * MAX_NAME_LENGTH + ".json"])
