"""One training run, in order: prepare, open, data, distill, train, finish."""
