"""What a request may ask for: bodies parsed once into types that cannot be wrong."""
