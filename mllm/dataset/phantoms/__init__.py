"""Generated medical-looking pictures and questions about them, for trials, tests and demonstrations."""
