"""Models of text: decoders, and encoder-decoders."""
