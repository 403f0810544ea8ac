"""Hugging Face directories: names and tensors of safetensors files."""
