"""Models: loading, adapters, encoding, heads and generation."""
