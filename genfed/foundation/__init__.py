"""The server's diffusion model: a directory of diffusers, what methods ask of it, and the training of a small one."""
