"""GGUF files for llama.cpp and Ollama: a language model, the part that sees, or a LoRA; needs the package `gguf`."""
