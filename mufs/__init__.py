"""mUFS: disk images, read on many hosts at once and sent once, by multicast."""

__version__ = "0.1.0"
