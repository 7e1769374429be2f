"""Tests of mufs.commands.check."""
