"""
Plugin of coverage.py. Services end by the signal that stopped them, as twistd has it; what they
ran is saved before that.
"""

import os

from coverage import Coverage


def coverage_init(registry: object, options: object) -> None:
    """Called where coverage.py starts, in each process that is measured."""
    kill = os.kill

    def save_and_kill(pid: int, number: int) -> None:
        current = Coverage.current()
        if pid == os.getpid() and current is not None:
            current.save()
        kill(pid, number)

    os.kill = save_and_kill
