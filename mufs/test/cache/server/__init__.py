"""Tests of mufs.cache.server."""
