"""Records, randomness, aggregates and the shape of a method. No networks, no input or output beyond safetensors."""
