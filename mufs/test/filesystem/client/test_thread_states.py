"""Threads that are not Python's, and what Python keeps of them."""

import ctypes
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client import thread_states

_python = ctypes.pythonapi
_python.PyInterpreterState_Get.restype = ctypes.c_void_p
_python.PyInterpreterState_ThreadHead.argtypes = [ctypes.c_void_p]
_python.PyInterpreterState_ThreadHead.restype = ctypes.c_void_p
_python.PyThreadState_Next.argtypes = [ctypes.c_void_p]
_python.PyThreadState_Next.restype = ctypes.c_void_p


def states() -> int:
    """Count the threads of which Python knows."""
    count, state = 0, _python.PyInterpreterState_ThreadHead(_python.PyInterpreterState_Get())
    while state is not None:
        count, state = count + 1, _python.PyThreadState_Next(state)
    return count


class KeepTests(SynchronousTestCase):
    """Threads made by the C library, as those of libfuse."""

    def test_ended(self) -> None:
        """However many threads come and go, nothing of them stays behind."""
        libc = ctypes.CDLL(None)
        libc.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
        within = []

        def body(_: object) -> None:
            thread_states.keep()
            thread_states.keep()
            within.append(states())

        start = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(body)
        before = states()
        for _ in range(100):
            thread = ctypes.c_ulong()
            self.assertEqual(libc.pthread_create(ctypes.byref(thread), None, start, None), 0)
            self.assertEqual(libc.pthread_join(thread, None), 0)
        self.assertEqual(within, [before + 1] * 100)
        self.assertEqual(states(), before)

    def test_of_python(self) -> None:
        """A thread of Python's own, such as the first one, is left alone: the process ends well."""
        program = (
            "from threading import Thread; from mufs.filesystem.client.thread_states import keep; "
            "other = Thread(target=keep); other.start(); other.join(); keep()"
        )
        ended = subprocess.run([sys.executable, "-c", program], check=False)
        self.assertEqual(ended.returncode, 0)
