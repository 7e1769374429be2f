"""Tests of mufs.status."""
