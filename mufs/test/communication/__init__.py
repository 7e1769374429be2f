"""Tests of mufs.communication."""
