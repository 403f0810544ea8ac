"""The residual stream: all that writes the hidden state and all that reads it, turned by one rotation.

A root-mean-square norm without a weight does not see a rotation Q of what it reads. So once the weights of norms lie in
the linears behind them, the hidden state may be turned: what writes it gives Q·y, what reads it takes Qᵀ back, and the
function stays as it is (SliceGPT, 2401.15024, §3; QuaRot, 2404.00456, §4, stage 1a).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from thrifty.arrays import Floats
from thrifty.errors import RecipeError
from thrifty.formats.linear import DenseLinear
from thrifty.models.model import Model
from thrifty.weights.groups import NormInfo, groups
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import exchange

WRITERS = ("output", "down")
READERS = ("query", "key", "value", "gate", "up", "router", "shared_gate")
ORTHOGONAL = 1e-4  # the most by which Q·Qᵀ may differ from 1


def fold_norms(model: Model) -> None:
    """Move the weight of every norm into the linears that read it, one linear at a time; tied embeddings are untied.

    Linears become plain fp32. Raises RecipeError where a norm has a bias or takes the mean off, or stands behind a
    branch: that does not fold.
    """
    _check(model)
    if model.config.tied_embeddings:
        model.config = replace(model.config, tied_embeddings=False)
        model.linears["head"] = model.linears["embedding"]
        model.report += [replace(entry, name="head") for entry in model.report if entry.name == "embedding"]
    for group in groups(model):
        if isinstance(group.source, NormInfo):
            weight = group.source.weight + group.source.offset
            model.norms = {**model.norms, group.source.name: np.full_like(weight, 1.0 - group.source.offset)}
            for reader in group.readers:
                folded = reader.linear.dequantize() * weight[group.channels]
                exchange(model, reader.name, DenseLinear.from_weight(folded, bias=reader.linear.bias))


def rotate(model: Model, rotation: Floats) -> None:
    """Turn the hidden state by `rotation`, fp32 [hidden, hidden], whose rows are orthogonal and of length 1: linears
    become plain fp32, one at a time. The norms must be folded (`fold_norms`).

    Raises RecipeError for a matrix that is none, and for a model whose norms are not folded or do not fold.
    """
    _check(model)
    size = model.config.hidden_size
    if rotation.shape != (size, size) or np.abs(rotation @ rotation.T - np.eye(size)).max() > ORTHOGONAL:
        raise RecipeError(f"the rotation {list(rotation.shape)} must be an orthogonal matrix [{size}, {size}]")
    if any((norm + model.config.norm_offset != 1).any() for name, norm in model.norms.items() if _reads_stream(name)):
        raise RecipeError("the norms still have weights, which a rotation would mix: call fold_norms first")
    for linear in linears(model):
        weight, bias = linear.linear.dequantize(), linear.linear.bias
        if linear.role in WRITERS:
            weight, bias = rotation @ weight, None if bias is None else rotation @ bias
        else:
            weight = weight @ rotation.T
        exchange(model, linear.name, DenseLinear.from_weight(weight, bias=bias))


def _check(model: Model) -> None:
    config = model.config
    if config.norm != "rms" or not config.pre_norms or config.post_norms:
        raise RecipeError(
            "the residual stream turns where every norm is a root-mean-square norm in front of what reads it; this "
            f"{config.family} model has norm = {config.norm}, pre_norms = {config.pre_norms}, post_norms = "
            f"{config.post_norms}"
        )
    for name, linear in model.linears.items():
        info = LinearInfo(name, linear)
        if info.layer is not None and info.role not in WRITERS + READERS:
            raise RecipeError(f"'{name}' is no linear of which is known how it reads or writes the hidden state")


def _reads_stream(norm: str) -> bool:
    """Whether a norm is one of the hidden state, and not of queries or keys."""
    return not norm.endswith((".query_norm", ".key_norm"))
