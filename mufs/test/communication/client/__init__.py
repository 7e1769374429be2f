"""Tests of mufs.communication.client."""
