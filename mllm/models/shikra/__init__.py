"""Shikra and PerceptionGPT: a LLaVA out of a language model and CLIP, and the layouts of their original code."""
