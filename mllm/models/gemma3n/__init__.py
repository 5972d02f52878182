"""Gemma 3n: loading, MatFormer slices, and the log format of GEMMA 3NCORE."""
