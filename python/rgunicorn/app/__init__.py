"""Applications that bring a server with them: see `base`."""
