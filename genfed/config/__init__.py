"""Reads a run's TOML file: settings, names of methods and of all that can be chosen."""
