"""Shikra and PerceptionGPT: a LLaVA composed of a language model and a CLIP, and conversion from the original code."""
