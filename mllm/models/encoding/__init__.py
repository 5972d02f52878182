"""Encoding of samples into token ids, pixels and labels."""
