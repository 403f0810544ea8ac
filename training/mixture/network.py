"""The sizes of the small mixture of experts, in the layout of Qwen-MoE: a shared expert with a gate beside them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.models.config.model_config import ExpertConfig, ModelConfig
from thrifty.models.huggingface.names import llama_name
from thrifty.reference.decoder import Decoder
from training.recall.network import Shape

_EXPERT = re.compile(r"layers\.(\d+)\.mlp\.experts\.(gate|up|down)\.(\d+)\.weight")


@dataclass(frozen=True)
class MixtureShape(Shape):
    """experts: of a layer, of which a token takes `active`. inner: neurons of an expert, and of the shared one."""

    vocabulary: int = 2048
    hidden: int = 128
    intermediate: int = 256
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    context: int = 2048
    theta: float = 1e4
    experts: int = 8
    active: int = 2
    inner: int = 128

    def config(self) -> ModelConfig:
        """As the engine takes it."""
        plain = super().config()
        experts = ExpertConfig(
            count=self.experts,
            active=self.active,
            intermediate_size=self.inner,
            normalise_probabilities=True,
            shared_intermediate_size=self.inner,
            shared_gate=True,
        )
        layers = tuple(dataclasses.replace(layer, experts=True) for layer in plain.layers)
        return dataclasses.replace(plain, family="qwen2_moe", layers=layers, experts=experts)

    def published(self) -> dict[str, object]:
        """What config.json says of it."""
        return super().published() | {
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            "qkv_bias": False,
            "num_experts": self.experts,
            "num_experts_per_tok": self.active,
            "moe_intermediate_size": self.inner,
            "shared_expert_intermediate_size": self.inner,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }

    def tensor_name(self, parameter: str) -> str:
        """What transformers calls it."""
        expert = _EXPERT.fullmatch(parameter)
        if expert is None:
            return llama_name(parameter)
        return f"model.layers.{expert[1]}.mlp.experts.{expert[3]}.{expert[2]}_proj.weight"


@contextmanager
def watched_routers(decoder: Decoder) -> Iterator[list[Tensor]]:
    """What the routers of the layers give while the context is open: a list that grows, each [tokens, experts]."""
    seen: list[Tensor] = []
    handles = [
        decoder.get_submodule(f"layers.{index}.mlp.router").register_forward_hook(
            lambda module, given, scores: seen.append(scores.float())
        )
        for index in range(len(decoder.config.layers))
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def imbalance(scores: Tensor, active: int) -> Tensor:
    """The auxiliary loss of Switch Transformers (2101.03961, eq. 4 to 6) for `active` experts a token: experts · Σ of
    the share of tokens that an expert is given × its mean probability; `active` where all are equal. scores: [tokens,
    experts].
    """
    probabilities = scores.softmax(-1)
    chosen = torch.zeros_like(probabilities).scatter(1, probabilities.topk(active, dim=-1).indices, 1.0)
    return scores.shape[1] * (chosen.mean(0) * probabilities.mean(0)).sum()
