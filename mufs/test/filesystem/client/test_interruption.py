"""Whether whoever waits has to end, for real processes."""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client.interruption import is_interrupted
from mufs.test.support.processes import wait_until

WAITER = """
import os, signal, sys
number, how = int(sys.argv[1]), sys.argv[2]
if how == "handled":
    signal.signal(number, lambda *_: None)
elif how == "ignored":
    signal.signal(number, signal.SIG_IGN)
elif how == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
print("ready", flush=True)
os.read(0, 1)
"""


class InterruptionTests(SynchronousTestCase):
    """Processes that are stopped, so that their signals stay pending."""

    def pending(self, number: signal.Signals, how: str) -> bool:
        """Whether a process that has a signal pending counts as interrupted."""
        waiter = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", WAITER, str(int(number)), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.addCleanup(waiter.communicate)
        self.addCleanup(waiter.kill)
        assert waiter.stdout is not None
        waiter.stdout.readline()
        self.assertFalse(is_interrupted(waiter.pid))
        waiter.send_signal(signal.SIGSTOP)
        wait_until(lambda: self.state(waiter.pid) == "T", 10, "the process is stopped")
        waiter.send_signal(number)
        return is_interrupted(waiter.pid)

    def state(self, pid: int) -> str:
        """The state of a process."""
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(") ")[2][0]

    def test_ends(self) -> None:
        """A signal that asks a process to end, or would kill it, interrupts."""
        self.assertTrue(self.pending(signal.SIGTERM, "default"))
        self.assertTrue(self.pending(signal.SIGINT, "handled"))
        self.assertTrue(self.pending(signal.SIGUSR1, "default"))

    def test_goes_on(self) -> None:
        """One that is ignored, blocked, harmless, or handled without an end does not."""
        self.assertFalse(self.pending(signal.SIGTERM, "ignored"))
        self.assertFalse(self.pending(signal.SIGTERM, "blocked"))
        self.assertFalse(self.pending(signal.SIGALRM, "handled"))
        self.assertFalse(self.pending(signal.SIGCHLD, "handled"))

    def test_gone(self) -> None:
        """Nobody waits for a process that has gone; of one elsewhere nothing is known."""
        gone = subprocess.Popen(["true"])
        gone.wait()
        self.assertTrue(is_interrupted(gone.pid))
        self.assertFalse(is_interrupted(0))

    def test_hidden(self) -> None:
        """A process that /proc does not show, but that is there, is not taken for gone."""

        def hide(*_: object) -> None:
            raise FileNotFoundError

        self.patch(builtins, "open", hide)
        self.assertFalse(is_interrupted(os.getpid()))
