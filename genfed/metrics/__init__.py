"""Measures of generated examples."""
