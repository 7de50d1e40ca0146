"""A batch of real requests, and the command that runs it from start to end."""
