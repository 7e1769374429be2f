"""Client part of the file system: FUSE mount, bridge into the reactor, files, read-ahead."""
