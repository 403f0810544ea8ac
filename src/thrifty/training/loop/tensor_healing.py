"""Linears that are trains of tensors, trained as such: what is stored is what learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thrifty.arrays import Floats
from thrifty.models.model import Model
from thrifty.reference.arrays import array_of
from thrifty.reference.linear import Linear
from thrifty.reference.loading import build
from thrifty.training.loop.batches import Batches
from thrifty.training.loop.checkpoint import Checkpoint
from thrifty.training.loop.healing import healing_loss
from thrifty.training.loop.loop import Plan, Say, train


@dataclass(frozen=True)
class Tensors:
    """A train as `formats.tensor_train` has it. sites: fp32 [o_k·χ_k, i_k·χ_k−1]; rows: o_k; columns: i_k."""

    sites: Sequence[Floats]
    rows: Sequence[int]
    columns: Sequence[int]


class TrainLinear(nn.Module):
    """y = W·x + bias with W put together of tensors in every pass; they train, the bias does not."""

    def __init__(self, base: Linear, tensors: Tensors) -> None:
        super().__init__()
        self.sites = nn.ParameterList([nn.Parameter(torch.tensor(site)) for site in tensors.sites])
        self.rows, self.columns = tuple(tensors.rows), tuple(tensors.columns)
        self.bias = None if base.bias is None else base.bias.detach()

    def weight(self) -> Tensor:
        """W, fp32 [out, in]."""
        made: Tensor = torch.ones(1, 1, 1)  # [rows so far, columns so far, bond]
        for site, rows, columns in zip(self.sites, self.rows, self.columns, strict=True):
            tensor = site.unflatten(0, (rows, -1)).unflatten(2, (columns, -1))  # [o_k, χ_k, i_k, χ_k−1]
            joined = torch.einsum("pac,odic->poaid", made, tensor)
            made = joined.flatten(2, 3).flatten(0, 1)
        return made[..., 0]

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out] of x's dtype."""
        y = x @ self.weight().to(x.dtype).T
        return y if self.bias is None else y + self.bias.to(y.dtype)


def heal_tensors(
    model: Model,
    trains: Mapping[str, Tensors],
    batches: Batches,
    plan: Plan,
    *,
    teacher: Model | None = None,
    checkpoint: Checkpoint | None = None,
    say: Say = lambda progress: None,
) -> dict[str, list[Floats]]:
    """The tensors of the linears `trains` after training, fp32, by the linears' names; the model stays as it is.

    teacher: the model before it was compressed: its predictions are learned (KL); None: the text itself.
    """
    decoder = build(model).decoder
    decoder.requires_grad_(False)
    made: dict[str, TrainLinear] = {}
    for name, tensors in trains.items():
        base = decoder.get_submodule(name)
        assert isinstance(base, Linear), f"{name} is a linear of the decoder"
        made[name] = TrainLinear(base, tensors)
        path, _, leaf = name.rpartition(".")
        setattr(decoder.get_submodule(path), leaf, made[name])

    parameters = {f"{name}.{place}": site for name, linear in made.items() for place, site in enumerate(linear.sites)}
    train(parameters, healing_loss(decoder, batches, teacher), plan, checkpoint=checkpoint, say=say)
    return {name: [array_of(site) for site in linear.sites] for name, linear in made.items()}
