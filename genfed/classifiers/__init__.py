"""Classifiers: each file's `ARCHITECTURES` maps a name to a function of the task."""
