"""
Whether whoever waits for an operation has been told to end, which the kernel passes on to a FUSE
file system only in part: a read through its page cache it never interrupts.
"""

import os
import signal
from contextlib import suppress


def _mask(*numbers: signal.Signals) -> int:
    return sum(1 << number - 1 for number in numbers)


ENDING = _mask(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM)
"""Signals that ask a process to end, whether it has a handler for them or not."""

HARMLESS = _mask(
    signal.SIGCHLD,
    signal.SIGCONT,
    signal.SIGSTOP,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGURG,
    signal.SIGWINCH,
)
"""Signals that end no process by default. All others do where there is no handler (signal(7))."""


def is_interrupted(thread: int) -> bool:
    """
    Whether a thread has gone, or a signal waits for it that is to end its process.

    A handler that goes on, as for a timer, does not count: programs do not expect EINTR from a read
    of a file.

    @param thread: its ID, 0 when it is in another PID namespace: of that nothing is known.
    """
    if thread <= 0:
        return False
    masks: dict[bytes, int] = {}
    try:
        with open(f"/proc/{thread}/status", "rb") as status:
            for line in status:
                name, _, value = line.partition(b":")
                if name in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn", b"SigCgt"):
                    masks[name] = int(value, 16)
        pending = masks[b"SigPnd"] | masks[b"ShdPnd"]
    except (OSError, KeyError):
        # Some mounts of /proc hide the processes of others.
        with suppress(PermissionError):
            try:
                os.kill(thread, 0)
            except ProcessLookupError:
                return True
        return False
    pending &= ~(masks[b"SigBlk"] | masks[b"SigIgn"])
    return bool(pending & (ENDING | ~(HARMLESS | masks[b"SigCgt"])))
