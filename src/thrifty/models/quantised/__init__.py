"""Checkpoints that come quantised: GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes."""
