"""Kernels for GPUs, written in Triton (extra `gpu`). Each is tested in Triton's interpreter against `reference/`."""
