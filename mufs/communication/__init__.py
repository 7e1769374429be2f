"""The communication module: the request channel over TCP, and data by UDP multicast."""
