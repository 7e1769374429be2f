"""Tests of mufs.cache."""
