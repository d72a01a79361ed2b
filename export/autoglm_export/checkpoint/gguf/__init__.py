"""GGUF files, llama.cpp's format: metadata, tensors, tokenizer."""
