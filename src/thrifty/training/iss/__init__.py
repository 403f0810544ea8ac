"""Intrinsic sparse structures: LSTM language models whose hidden sizes shrink while they train (arXiv 1709.05027)."""
