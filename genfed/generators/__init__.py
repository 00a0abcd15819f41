"""Conditional generators, one file each."""
