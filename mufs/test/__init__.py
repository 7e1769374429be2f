"""The tests of mUFS, for trial."""

import signal

# What a shell runs in the background ignores Ctrl-C, and so would all that the tests start; some of
# it they send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
