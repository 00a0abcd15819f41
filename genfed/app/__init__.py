"""Configuration, the registry, the run loop and the command line."""
