"""Training, preflight checks and evaluation."""
