"""The oracle: every kernel in plain torch, written to be read. Native kernels are tested against these."""
