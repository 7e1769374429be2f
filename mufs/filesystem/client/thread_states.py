"""
What Python knows of each of libfuse's threads, kept until the thread ends.

Otherwise Python makes it anew for each call from such a thread, and maps and unmaps memory for it:
two thirds of the time that a read from the cache takes.
"""

import ctypes
from threading import local

_kept = local()
_libc = ctypes.CDLL(None)
_python = ctypes.pythonapi
_python.PyThreadState_Get.restype = ctypes.c_void_p
for _function in (_python.PyThreadState_Clear, _python.PyThreadState_Delete):
    _function.argtypes = [ctypes.c_void_p]
    _function.restype = None
_libc.pthread_setspecific.argtypes = [ctypes.c_uint, ctypes.c_void_p]


def keep() -> None:
    """Keep the state of this thread, which is not one of Python's, until it ends."""
    try:
        _kept.state  # noqa: B018 # it is there from the second call on
    except AttributeError:
        _kept.state = True
        _python.PyGILState_Ensure()
        _libc.pthread_setspecific(_key, _python.PyThreadState_Get())


def _ended(state: int) -> None:
    """A thread ends, for which Python may have made another state, to call this."""
    if _python.PyThreadState_Get() == state:
        _python.PyGILState_Release(0)
    else:
        _python.PyThreadState_Clear(state)
        _python.PyThreadState_Delete(state)


_key = ctypes.c_uint()
_callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_ended)
if _libc.pthread_key_create(ctypes.byref(_key), _callback):
    raise RuntimeError("no more keys of threads")
