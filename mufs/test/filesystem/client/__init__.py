"""Tests of mufs.filesystem.client."""
