"""From generated tokens to the objects of the API."""
