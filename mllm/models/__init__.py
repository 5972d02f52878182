"""What reads images and writes text: loading, adapters, encoding, generation."""
