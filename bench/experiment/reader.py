"""Makes the reads of a trace, one after the other, on one host. Run as a program.

    python reader.py START FILE TRACE DELAY THINK

It begins DELAY seconds after the moment START of the monotonic clock. Between the end of a read
and the beginning of the next it waits THINK times as long as the trace did. Reads bypass the
kernel's page cache (O_DIRECT), because the trace was recorded below one.
"""

import hashlib
import json
import mmap
import os
import sys
import time

MAX_READ_SIZE = 1 << 20


def main() -> None:
    start, path, trace, delay, think = sys.argv[1:]
    with open(trace) as lines:
        next(lines)
        rows = [line.split(",") for line in lines]
    # O_DIRECT requires memory that begins at a page boundary.
    buffer = memoryview(mmap.mmap(-1, MAX_READ_SIZE))
    digest, error = hashlib.sha256(), ""
    time.sleep(max(0.0, float(start) + float(delay) - time.monotonic()))
    image = os.open(path, os.O_RDONLY | os.O_DIRECT)
    before = float(rows[0][0])
    for moment, offset, length in rows:
        pause = (float(moment) - before) * float(think)
        before = float(moment)
        if pause > 0:
            time.sleep(pause)
        wanted = buffer[: int(length)]
        if os.preadv(image, [wanted], int(offset)) != len(wanted):
            error = f"a short read at {offset}"
            break
        digest.update(wanted)
    seconds = time.monotonic() - float(start)
    used = os.times()
    done = {"seconds": seconds, "cpu": used.user + used.system, "error": error}
    print(json.dumps({**done, "sha256": digest.hexdigest()}))


main()
