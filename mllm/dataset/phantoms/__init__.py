"""Generated images that resemble medical images, with questions, for trials, tests and demos."""
