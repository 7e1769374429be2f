"""Tests of mufs.cache.client."""
