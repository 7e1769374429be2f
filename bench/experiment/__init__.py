"""Repeats the experiment of the paper's section 6 on one machine: see docs/experiments.md."""
