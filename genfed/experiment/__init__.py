"""Runs a config on this machine: trials, rounds, checkpoints, workers, the report."""
