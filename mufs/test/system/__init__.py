"""Real processes, mounts, sockets and network namespaces."""
