"""Tokenizers: their files, pieces, special tokens and ends."""
