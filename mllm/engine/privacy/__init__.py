"""Differential privacy (arXiv:1607.00133): clipping per unit, noise, and privacy accounting."""
