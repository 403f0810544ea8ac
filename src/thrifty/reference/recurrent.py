"""Gated linear attention (arXiv 2312.06635) in plain torch: the reference of the native recurrence."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thrifty.models.config.layer_spec import RecurrentSpec
from thrifty.models.config.model_config import ModelConfig
from thrifty.reference.norm import RMSNorm
from thrifty.reference.slot import Slot

# (layer, query, key [t, heads, key_dim], value [t, heads, value_dim], decay fp32 [t, heads, key_dim or 1])
# -> [t, heads, value_dim] of value's dtype. Queries come scaled, decays in (0, 1): the callee knows the state.
Recur = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]


class GatedLinearAttention(nn.Module):
    """Projections, gates and norm around the injected recurrence. x: [tokens, hidden]. See RecurrentSpec."""

    def __init__(self, config: ModelConfig, index: int, spec: RecurrentSpec) -> None:
        super().__init__()
        self.index, self.spec = index, spec
        hidden = config.hidden_size
        self.query: nn.Module = Slot(spec.key_width, hidden)
        self.key: nn.Module = Slot(spec.key_width, hidden)
        self.value: nn.Module = Slot(spec.value_width, hidden)
        self.decay: nn.Module = Slot(spec.decay_width, hidden, True)
        self.gate: nn.Module = Slot(spec.value_width, hidden)
        self.norm = RMSNorm(spec.value_dim, config.norm_epsilon, config.norm_offset)
        self.output: nn.Module = Slot(hidden, spec.value_width)

    def forward(self, x: Tensor, recur: Recur) -> Tensor:
        heads = self.spec.heads
        query = self.query(x).unflatten(-1, (heads, -1)) * self.spec.key_dim**-0.5
        key, value = self.key(x).unflatten(-1, (heads, -1)), self.value(x).unflatten(-1, (heads, -1))
        decay = decays(self.decay(x), self.spec).unflatten(-1, (heads, -1))
        mixed = self.norm(recur(self.index, query, key, value, decay))
        return self.output(F.silu(self.gate(x)) * mixed.flatten(1))


def decays(raw: Tensor, spec: RecurrentSpec) -> Tensor:
    """[tokens, decay_width] → sigmoid(raw)^(1 / temperature), fp32."""
    return torch.exp(F.logsigmoid(raw.float()) / spec.temperature)


def from_zero(layer: int, query: Tensor, key: Tensor, value: Tensor, decay: Tensor) -> Tensor:
    """The recurrence of one whole sequence, which begins with a state of zeros. Works under autograd."""
    _, heads, width = value.shape
    state = torch.zeros(heads, key.shape[-1], width, device=value.device)
    return recurrence(query, key, value, decay, state)[0]


def recurrence(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Row after row: S ← diag(decay) S + key valueᵀ, o = Sᵀ query (arXiv 2312.06635, eq. 3).

    Shapes as in `Recur`; state: fp32 [heads, key_dim, value_dim]. Returns o and the state after the last row, computed
    in fp32.
    """
    rows = []
    for q, k, v, a in zip(query.float(), key.float(), value.float(), decay, strict=True):
        state = a[:, :, None] * state + k[:, :, None] * v[:, None, :]
        rows.append((q[:, :, None] * state).sum(1))
    return torch.stack(rows).to(value.dtype), state
