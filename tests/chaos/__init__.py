"""Kills at random system calls: `make chaos`."""
