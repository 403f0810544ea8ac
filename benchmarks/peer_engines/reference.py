"""What every engine's predictions are compared with: the shipped weights, in bf16 or exact, computed in fp32."""

from __future__ import annotations

import os

import torch

from thrifty import reference
from thrifty.evaluation.text import held_out


@torch.no_grad()
def write_reference(model: str, target: str, prefix: int, scored: int, threads: int, exact: bool = False) -> None:
    """Write tokens [prefix + scored] of the package's text and the logits fp32 [scored, vocabulary] after each of
    the last `scored` of them, atomically, as .npz. exact: with the file's own values instead of bf16.
    """
    import numpy as np

    torch.set_num_threads(threads)
    loaded = reference.load(model, dtype=torch.float32 if exact else torch.bfloat16)
    tokens = held_out(loaded.tokenizer, prefix + scored)
    logits = loaded.logits(tokens)[-scored:]
    partial = f"{target}.partial.npz"
    np.savez(partial, tokens=np.array(tokens), logits=logits.numpy())
    os.replace(partial, target)
