"""OpenAI-compatible server of trained models."""
