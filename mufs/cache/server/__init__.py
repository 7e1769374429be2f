"""Server part of the cache: what is to be sent, and what was sent a moment ago."""
