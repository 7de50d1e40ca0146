"""Programs that answer prompts, each with an engine of its own, driven line by line."""
