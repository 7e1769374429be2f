"""Real server and clients, joined by a network in virtual time."""
