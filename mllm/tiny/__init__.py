"""Tiny random checkpoints with real processors, used by `--tiny` and by the tests."""
