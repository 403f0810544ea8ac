"""The kinds of MLP: a gated one, a plain one, and a mixture of gated experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thrifty.models.config.model_config import ExpertConfig, ModelConfig
from thrifty.reference.slot import Slot


def activate(x: Tensor, name: str) -> Tensor:
    """SiLU, or the tanh approximation of GELU."""
    return F.silu(x) if name == "silu" else F.gelu(x, approximate="tanh")


class GatedMLP(nn.Module):
    """down(activation(gate(x)) · up(x)); x: [tokens, hidden]."""

    def __init__(self, config: ModelConfig, intermediate_size: int) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate: nn.Module = Slot(intermediate_size, config.hidden_size, config.mlp_bias)
        self.up: nn.Module = Slot(intermediate_size, config.hidden_size, config.mlp_bias)
        self.down: nn.Module = Slot(config.hidden_size, intermediate_size, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(activate(self.gate(x), self.activation) * self.up(x))


class PlainMLP(nn.Module):
    """down(activation(up(x))); x: [tokens, hidden]."""

    def __init__(self, config: ModelConfig, intermediate_size: int) -> None:
        super().__init__()
        self.activation = config.activation
        self.up: nn.Module = Slot(intermediate_size, config.hidden_size, config.mlp_bias)
        self.down: nn.Module = Slot(config.hidden_size, intermediate_size, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(activate(self.up(x), self.activation))


class Experts(nn.Module):
    """The three matrices of every expert: `gate[e]`, `up[e]`, `down[e]`."""

    def __init__(self, config: ModelConfig, experts: ExpertConfig) -> None:
        super().__init__()
        self.activation = config.activation
        inner, hidden = experts.intermediate_size, config.hidden_size
        self.gate = nn.ModuleList(Slot(inner, hidden) for _ in range(experts.count))
        self.up = nn.ModuleList(Slot(inner, hidden) for _ in range(experts.count))
        self.down = nn.ModuleList(Slot(hidden, inner) for _ in range(experts.count))

    def forward(self, x: Tensor, expert: int) -> Tensor:
        return self.down[expert](activate(self.gate[expert](x), self.activation) * self.up[expert](x))


class MixtureMLP(nn.Module):
    """Each token goes to its most probable experts and, where there is one, to the shared expert.

    Tokens are grouped by expert, and a token's parts are added in the order of the experts' numbers, so
    that the result of a row does not depend on its neighbours.
    """

    def __init__(self, config: ModelConfig, experts: ExpertConfig) -> None:
        super().__init__()
        self.active = experts.active
        self.normalise = experts.normalise_probabilities
        self.router: nn.Module = Slot(experts.count, config.hidden_size)
        self.experts = Experts(config, experts)
        self.shared = GatedMLP(config, experts.shared_intermediate_size) if experts.shared_intermediate_size else None
        self.shared_gate: nn.Module | None = Slot(1, config.hidden_size) if experts.shared_gate else None

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        result = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            rows, place = torch.where(chosen == expert)
            part = self.experts(x[rows], expert) * weights[rows, place, None].to(x.dtype)
            result = result.index_add(0, rows, part)
        if self.shared is None:
            return result
        shared = self.shared(x)
        return result + (shared if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * shared)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (fp32) and numbers of the chosen experts, each [tokens, active]."""
        probabilities = self.router(x).float().softmax(-1)
        weights, chosen = probabilities.topk(self.active, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen
