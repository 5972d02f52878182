"""Page for people who ask a model: pictures, conversations, corrections and reports."""
