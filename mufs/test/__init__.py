"""The tests of mUFS, for trial."""
