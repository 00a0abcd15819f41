"""Data sources, one file each, and the ways to share a data set out among clients."""
