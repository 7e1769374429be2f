"""Compares mUFS with other ways to deliver an image to many hosts: see README.md here."""
