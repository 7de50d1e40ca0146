"""The decoder: its configuration, its weights, its forward pass."""
