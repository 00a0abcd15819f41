"""Encoders, one file each: fixed maps from examples to features. They learn nothing from clients."""
