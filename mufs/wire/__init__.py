"""Formats that client and server share: packets, metadata, sealing, and the page grid."""
