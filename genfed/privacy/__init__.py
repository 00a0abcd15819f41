"""Differential privacy: settings, noise, accounting, budgets and checks before training."""
