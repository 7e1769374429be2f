"""What the tests share: doubles, simulated networks, real hosts, processes."""
