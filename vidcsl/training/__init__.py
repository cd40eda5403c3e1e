"""Training: the loop (`train`) and its parts. Nothing here reads a config."""
