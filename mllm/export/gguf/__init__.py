"""GGUF files for llama.cpp and Ollama: a language model, its vision tower, or a LoRA; requires the package `gguf`."""
