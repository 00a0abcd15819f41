"""genfed: generative federated learning."""
