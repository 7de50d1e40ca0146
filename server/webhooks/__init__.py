"""Webhooks: events are signed and sent to the addresses that projects have named."""
