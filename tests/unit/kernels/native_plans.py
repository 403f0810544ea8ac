"""What the tests of native plans share: small models of every family, and how rows are fed to their plans."""

from __future__ import annotations

import dataclasses

import torch
from tests.unit.kernels.native_pages import Pages, open_view
from torch import Tensor, nn

from thrifty.engine.plan import NativePlan
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear
from thrifty.models.config import ExpertConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling
from thrifty.models.decoder import Decoder
from thrifty.models.norm import RMSNorm

ROPE = RopeConfig(theta=1e4, dimension=64)
LLAMA = ModelConfig(
    family="llama", vocabulary_size=133, hidden_size=96, intermediate_size=144, heads=6, kv_heads=2, head_dim=64,
    context_length=1024, layers=(LayerConfig(None, ROPE),) * 3, norm_epsilon=1e-5, query_scale=0.125,
    tied_embeddings=True,
)  # fmt: skip
GEMMA = dataclasses.replace(
    LLAMA, family="gemma", heads=2, kv_heads=1, head_dim=128, norm_offset=1.0, qk_norm="head", activation="gelu_tanh",
    layers=(LayerConfig(70, RopeConfig(1e4, 128)), LayerConfig(None, RopeConfig(1e6, 64))),
    embedding_scale=9.8, post_norms=True, final_softcap=30.0, attention_softcap=50.0, tied_embeddings=False,
)  # fmt: skip
BIASED = dataclasses.replace(
    LLAMA, attention_bias=True, output_bias=True, mlp_bias=True, layers=(LayerConfig(None, RopeConfig(1e4, 0)),) * 2
)
MIXTRAL = dataclasses.replace(
    LLAMA, family="mixtral", layers=(LayerConfig(None, ROPE, experts=True),) * 2,
    experts=ExpertConfig(count=5, active=2, intermediate_size=80, normalise_probabilities=True),
)  # fmt: skip
QWEN2_MOE = dataclasses.replace(
    MIXTRAL, family="qwen2_moe", attention_bias=True,
    layers=(LayerConfig(None, ROPE), LayerConfig(None, ROPE, experts=True), LayerConfig(None, ROPE, experts=True)),
    experts=ExpertConfig(12, 4, 40, False, shared_intermediate_size=72, shared_gate=True),
)  # fmt: skip
QWEN3_MOE = dataclasses.replace(
    MIXTRAL, family="qwen3_moe", qk_norm="head", experts=ExpertConfig(16, 8, 48, normalise_probabilities=True)
)
OLMOE = dataclasses.replace(
    MIXTRAL, family="olmoe", qk_norm="full", experts=ExpertConfig(9, 3, 33, normalise_probabilities=False)
)
GEMMA_MOE = dataclasses.replace(GEMMA, layers=(LayerConfig(70, RopeConfig(1e4, 128), experts=True),) * 2,
                                experts=ExpertConfig(6, 2, 50, True, shared_intermediate_size=30))  # fmt: skip
DYNAMIC = dataclasses.replace(
    LLAMA, layers=(LayerConfig(None, RopeConfig(1e4, 64, RopeScaling("dynamic", 2.0, 40))),) * 2
)
LONGROPE = dataclasses.replace(LLAMA, layers=(LayerConfig(None, RopeConfig(1e4, 64, RopeScaling(
    "longrope", original_context=50, attention_factor=1.2, short_factor=(1.0,) * 32,
    long_factor=tuple(1.0 + 0.2 * i for i in range(32))))),) * 2)  # fmt: skip
MIXTURES = {config.family: config for config in (MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE)} | {"gemma_moe": GEMMA_MOE}


def decoder(config: ModelConfig, bits: int = 4) -> Decoder:
    torch.manual_seed(0)
    made = Decoder(config)
    for name, place in list(made.linears()):
        weight = torch.randn(place.out_features, place.in_features) * place.in_features**-0.5
        bias = torch.randn(place.out_features) * 0.1 if place.has_bias else None
        if name.endswith((".router", ".shared_gate")):  # as loaders keep them
            linear: PackedLinear = DenseLinear.from_weight(weight * 3)
        elif bits == 32:
            linear = DenseLinear.from_weight(weight, bias=bias)
        elif bits == 16:
            linear = DenseLinear.from_weight(weight, torch.bfloat16, packed=True, bias=bias)
        else:
            linear = GroupLinear.quantize(weight, 8 if name == "embedding" else bits, 32, bias=bias)
        made.replace(name, linear)
    for module in made.modules():
        if isinstance(module, RMSNorm):
            module.weight = nn.Parameter(
                torch.rand(module.weight.shape) + 0.5 - config.norm_offset, requires_grad=False
            )
    return made


def with_oracles(made: Decoder) -> Decoder:
    """The decoder computing every linear as the native kernels do, activation quantisation included."""
    for module in made.modules():
        if isinstance(module, GroupLinear | DenseLinear) and module.has_kernel:
            module.native, module._matmul = False, module.oracle
    return made


def cache(config: ModelConfig, capacity: int, format: str = "f32") -> Pages:
    return open_view(len(config.layers), config.kv_heads, config.head_dim, capacity, format)


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 133, (count,), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))


def span(start: int, stop: int) -> Tensor:
    return torch.arange(start, stop, dtype=torch.int32)


def feed(plan: NativePlan, config: ModelConfig, ids: Tensor, sizes: list[int], format: str = "bf16") -> Tensor:
    """Logits of all rows, fed in pieces."""
    made, start, rows = cache(config, len(ids), format), 0, []
    for size in sizes:
        piece, positions = slice(start, start + size), span(start, start + size)
        logits = plan.step(ids[piece], positions, [made.view], [size], span(0, size), lengths=[len(ids)])
        rows.append(logits.clone())
        start += size
    return torch.cat(rows)
