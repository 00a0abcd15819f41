"""Robust aggregation rules, and simulated attacks that they are measured against."""
