"""Gemma 3n: what is particular to its checkpoints."""
