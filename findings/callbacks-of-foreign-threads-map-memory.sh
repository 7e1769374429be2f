#!/bin/sh
# CPython 3.11: each call of a ctypes callback from a thread that Python did not start makes a thread
# state and throws it away after the call. The first Python function in it maps memory for frames
# and unmaps it again, so each call costs a page fault or more, and several times the time of the
# same call from a thread whose state lasts. That is how libfuse, for one, calls Python.
#
# Expected: the state of a thread that calls again and again is kept, or at least its memory.
#
# PyGILState_Ensure, called once in such a thread without its counterpart, keeps the state; then
# somebody has to release it before the thread ends.
#
# Needs Python 3.11 and a C compiler.
set -eu
directory=$(mktemp -d)
trap 'rm -r "$directory"' EXIT
cat >"$directory/caller.c" <<'C'
#include <pthread.h>

static void (*called)(int);

static void *body(void *count) {
    for (int number = 0; number < *(int *)count; number++)
        called(number);
    return 0;
}

void from_thread(void (*function)(int), int count) {
    pthread_t thread;
    called = function;
    pthread_create(&thread, 0, body, &count);
    pthread_join(thread, 0);
}
C
cc -shared -fPIC -pthread -o "$directory/caller.so" "$directory/caller.c"
python3 - "$directory/caller.so" <<'PYTHON'
import ctypes
import resource
import sys
import time

CALLS = 20_000
KEPT = 0

caller = ctypes.CDLL(sys.argv[1])


def function():
    return 1


def callback(number):
    if KEPT and number == 0:
        ctypes.pythonapi.PyGILState_Ensure()
    function()
    if KEPT and number == CALLS - 1:
        ctypes.pythonapi.PyGILState_Release(0)


def measure():
    pointer = ctypes.CFUNCTYPE(None, ctypes.c_int)(callback)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
    caller.from_thread(pointer, CALLS)
    seconds = time.process_time() - began
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults / CALLS, seconds / CALLS * 1e6


print("Python", sys.version.split()[0])
thrown_away = measure()
KEPT = 1
kept = measure()
for name, (faults, microseconds) in {"thrown away": thrown_away, "kept": kept}.items():
    print(f"state {name}: {faults:.2f} page faults and {microseconds:.1f} us a call")
if not (thrown_away[0] >= 1 and kept[0] < 0.1):
    sys.exit("the behaviour has changed")
PYTHON
