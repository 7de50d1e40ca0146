"""Trunkline: a self-hosted, OpenAI-compatible batch API server with its own inference engine."""

__version__ = "0.1.0"
