"""The subcommands that mUFS adds to twistd."""

from twisted.application.service import ServiceMaker

server = ServiceMaker(
    "mUFS server",
    "mufs.server_tap",
    "Share disk images with many hosts by multicast",
    "mufs-server",
)

client = ServiceMaker(
    "mUFS client",
    "mufs.client_tap",
    "Mount the disk images of an mUFS server",
    "mufs-client",
)
