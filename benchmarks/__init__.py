"""Benchmarks: what mixout costs, and what it is good for."""
