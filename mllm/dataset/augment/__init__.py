"""Augmentation of images together with their marks."""
