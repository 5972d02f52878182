"""Prediction of memory, operations and time of a training run from its config, without weights."""
