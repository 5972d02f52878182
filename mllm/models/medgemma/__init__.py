"""Gemma 3 with images: MedGemma and its relatives."""
