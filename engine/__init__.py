"""The inference engine: claims batches, plans them whole, steps, commits outcomes."""
