"""C{mufs check}: why multicast works between this host and a server, or does not."""
