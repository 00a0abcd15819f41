"""Classifiers: each file's `ARCHITECTURES` maps a name to a function that makes the network for a task."""
