"""Client part of the cache: the blocks of images that this host holds."""
