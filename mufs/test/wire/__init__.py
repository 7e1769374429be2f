"""Tests of mufs.wire."""
