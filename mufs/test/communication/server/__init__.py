"""Tests of mufs.communication.server."""
