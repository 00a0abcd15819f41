"""Local training, evaluation and what is done to weights."""
