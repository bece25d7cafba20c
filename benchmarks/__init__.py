"""Benchmarks: the cost of mixout, and how well it finetunes."""
