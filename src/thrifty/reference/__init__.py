"""The reference: every model in plain torch, from the arrays that the engine's kernels read."""
