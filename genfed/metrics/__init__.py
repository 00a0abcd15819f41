"""Metrics of generated examples, and of classifiers."""
