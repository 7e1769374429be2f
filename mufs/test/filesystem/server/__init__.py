"""Tests of mufs.filesystem.server."""
