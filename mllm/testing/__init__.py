"""What tests and trials without weights use: tiny checkpoints, generated files."""
