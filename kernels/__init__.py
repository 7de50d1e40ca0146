"""Tensor operations: a plain-torch reference of each, and fast variants beside it."""
