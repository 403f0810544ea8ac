"""GGUF files: header, configuration, vocabulary, tensors."""
