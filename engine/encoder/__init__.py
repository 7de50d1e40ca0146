"""Encoders: models that read a text as a whole and generate nothing."""
