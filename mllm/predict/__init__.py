"""Prediction and evaluation with a trained adapter or a whole model."""
