"""
Reads of images (paper, section 4): what each needs, what is asked for, and what answers it.

All but L{mufs.filesystem.client.reading.reader} are plain objects without clock, reactor or
network: they are called with what happened and the time, and say what to send and what has ended.
"""
