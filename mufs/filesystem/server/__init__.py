"""Server part of the file system: the exported directory."""
