"""Models in plain torch: over the arrays of a packed model, or with the checkpoint's own values in one float type."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thrifty.errors import CheckpointError
from thrifty.formats.linear import DenseLinear
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.loading import load as load_packed
from thrifty.models.loading import load_plain
from thrifty.models.model import Model
from thrifty.reference.arrays import DTYPES
from thrifty.reference.attention import causal
from thrifty.reference.decoder import Decoder
from thrifty.reference.linear import Linear, parameter


@dataclass(frozen=True)
class ReferenceModel:
    """A decoder in torch, and the model whose arrays it reads."""

    model: Model
    decoder: Decoder

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Logits [tokens, vocabulary] fp32 of a whole sequence `token_ids` [tokens].

        Raises PromptError for an empty sequence, one longer than the context, or an id outside the
        vocabulary.
        """
        ids = token_ids.numpy() if isinstance(token_ids, Tensor) else token_ids
        tokens = torch.from_numpy(self.model.checked(ids))
        return self.decoder(tokens, torch.arange(len(tokens)), causal(self.config))


def load(name_or_path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> ReferenceModel:
    """A model in torch; `name_or_path` as `models.load` takes it, which also tells what it raises.

    dtype: None reads the packed arrays of `models.load`; float32 (which trains) or bfloat16 gives plain linears of the
    checkpoint's exact values.
    """
    if dtype is None:
        return build(load_packed(name_or_path))
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype is {dtype}; it must be torch.float32, torch.bfloat16 or None.")
    return build(_writable(load_plain(name_or_path, DTYPES[dtype])))


def _writable(model: Model) -> Model:
    """The model with copies of what lies in memory that may not be written to, such as a mapped file."""
    for name, linear in model.linears.items():
        assert isinstance(linear, DenseLinear)
        if not linear.weight.flags.writeable:
            weight = linear.weight.copy()
            model.replace(name, DenseLinear(linear.out_features, linear.in_features, weight, False, linear.bias))
    model.norms = {name: norm if norm.flags.writeable else norm.copy() for name, norm in model.norms.items()}
    return model


def build(model: Model) -> ReferenceModel:
    """The decoder over the model's own arrays: nothing is copied, and training it changes them.

    Plain linears whose memory can be written to train, and with them the norms.
    """
    decoder = Decoder(model.config)
    for name, linear in model.linears.items():
        decoder.replace(name, Linear(linear))
    trains = any(weight.requires_grad for weight in decoder.parameters())
    for name, weight in model.norms.items():
        module = decoder.get_submodule(name.removesuffix(".bias"))
        setattr(module, "bias" if name.endswith(".bias") else "weight", parameter(weight, trains))
    return ReferenceModel(model, decoder)
