"""Models that read images and write text, of any architecture that transformers' auto class loads."""
