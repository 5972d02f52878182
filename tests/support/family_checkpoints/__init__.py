"""Tiny random checkpoints of many model families, one record each, for tests/models/test_families.py."""
