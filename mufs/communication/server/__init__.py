"""Server part of communication: the request channel's server, the multicast controller."""
