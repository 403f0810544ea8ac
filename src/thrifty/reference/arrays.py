"""Arrays as tensors over the same memory, and back."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from thrifty.arrays import BFLOAT16, Array

DTYPES: dict[torch.dtype, np.dtype] = {torch.float32: np.dtype(np.float32), torch.bfloat16: BFLOAT16}


def tensor_of(array: Array) -> Tensor:
    """A tensor of the same shape and type over the array's own memory, bf16 included.

    The tensor of a read-only array must not be written to: its memory may be a file.
    """
    bits = array.view(np.uint16) if array.dtype == BFLOAT16 else array
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(bits)
    return tensor.view(torch.bfloat16) if array.dtype == BFLOAT16 else tensor


def array_of(tensor: Tensor) -> Array:
    """An array over the tensor's own memory, bf16 included; it takes no part in gradients."""
    tensor = tensor.detach()
    return tensor.view(torch.uint16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
