"""The cache module: what a host keeps of images; what the server is to send and has sent."""
