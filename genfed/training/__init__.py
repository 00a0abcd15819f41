"""Networks learn here: local training, evaluation, distillation, synthetic data."""
