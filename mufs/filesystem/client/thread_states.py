"""
What Python knows of each of libfuse's threads, kept until the thread ends.

Otherwise Python makes it anew for each call from such a thread, and maps and unmaps memory for it:
two thirds of the time that a read from the cache takes.
"""

import ctypes
from threading import enumerate as python_threads
from threading import get_ident, local

_kept = local()
_python = ctypes.pythonapi


def keep() -> None:
    """Keep the state of this thread until it ends, unless it is one of Python's, which keep it."""
    try:
        _kept.state  # noqa: B018 # it is there from the second call on
    except AttributeError:
        _kept.state = True
        known = {thread.ident for thread in python_threads()}
        if _at_exit is not None and get_ident() not in known:
            _python.PyGILState_Ensure()
            _at_exit(_callback, None, _callback)  # the last one belongs to no library, and not null


def _let_go(_: object) -> None:
    """The thread ends. The call of this function holds the state, too, and frees it at its end."""
    _python.PyGILState_Release(0)


_callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_let_go)
# What C++ calls at the end of a thread. Destructors of pthread_key_create(3) come too late: the
# thread has lost its state by then. C libraries other than glibc may lack it.
_at_exit = getattr(ctypes.CDLL(None), "__cxa_thread_atexit_impl", None)
