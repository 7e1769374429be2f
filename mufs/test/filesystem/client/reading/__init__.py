"""Tests of reads of images."""
