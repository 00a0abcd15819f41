"""Differential privacy: settings, noise, accounting, budgets, what is refused."""
