"""Decoding: sampling, stopping, and the strategies that turn logits into committed tokens."""
