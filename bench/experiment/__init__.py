"""The experiment of the paper, section 6, repeated on one machine: see docs/experiments.md."""
