"""The file system module: the mount and its operations; the library of images behind them."""
