"""Attacks on finished runs: one audit, one file."""
