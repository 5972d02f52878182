"""Differential privacy (arXiv:1607.00133): every unit's gradient clipped, the sum made noisy, the spending counted."""
