"""Benchmarks: `python -m benchmarks` runs them all; each module alone is a command too."""
