"""Tests of mufs.filesystem."""
