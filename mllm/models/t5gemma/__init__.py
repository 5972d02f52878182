"""Conversion of T5Gemma between the Orbax checkpoints of the package `gemma` and the layout of transformers."""
