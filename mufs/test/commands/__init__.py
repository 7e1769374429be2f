"""Tests of mufs.commands."""
