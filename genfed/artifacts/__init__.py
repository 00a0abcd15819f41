"""Uses a finished run: trained models, samples, predictions, audits."""
