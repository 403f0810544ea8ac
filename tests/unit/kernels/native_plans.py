"""What the tests of native plans share: small models of every family, and how rows are fed to their plans."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from tests.unit.kernels.native_pages import Pages, open_view
from torch import Tensor

from thrifty.arrays import BFLOAT16, Floats
from thrifty.engine.plan.plan import NativePlan
from thrifty.engine.plan.plan import compile_plan as compile_native
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear
from thrifty.models.adapters import Adapter
from thrifty.models.assembly import Assembly
from thrifty.models.config.model_config import ExpertConfig, LayerSpec, ModelConfig, RopeConfig, RopeScaling
from thrifty.models.model import Model
from thrifty.reference import build
from thrifty.reference.decoder import Decoder

ROPE = RopeConfig(theta=1e4, dimension=64)
LLAMA = ModelConfig(
    family="llama", vocabulary_size=133, hidden_size=96, intermediate_size=144, heads=6, kv_heads=2, head_dim=64,
    context_length=1024, layers=(LayerSpec(None, ROPE),) * 3, norm_epsilon=1e-5, query_scale=0.125,
    tied_embeddings=True,
)  # fmt: skip
GEMMA = dataclasses.replace(
    LLAMA, family="gemma", heads=2, kv_heads=1, head_dim=128, norm_offset=1.0, qk_norm="head", activation="gelu_tanh",
    layers=(LayerSpec(70, RopeConfig(1e4, 128)), LayerSpec(None, RopeConfig(1e6, 64))),
    embedding_scale=9.8, post_norms=True, final_softcap=30.0, attention_softcap=50.0, tied_embeddings=False,
)  # fmt: skip
BIASED = dataclasses.replace(
    LLAMA, attention_bias=True, output_bias=True, mlp_bias=True, layers=(LayerSpec(None, RopeConfig(1e4, 0)),) * 2
)
STARCODER2 = dataclasses.replace(BIASED, family="starcoder2", norm="layer", mlp="plain", activation="gelu_tanh")
STABLELM = dataclasses.replace(
    LLAMA, family="stablelm", norm="layer", layers=(LayerSpec(None, RopeConfig(1e4, 16)),) * 2
)
OLMO2 = dataclasses.replace(LLAMA, family="olmo2", qk_norm="full", pre_norms=False, post_norms=True)
GRANITE = dataclasses.replace(LLAMA, family="granite", embedding_scale=3.0, residual_scale=0.3, logit_scale=0.5)
MIXTRAL = dataclasses.replace(
    LLAMA, family="mixtral", layers=(LayerSpec(None, ROPE, experts=True),) * 2,
    experts=ExpertConfig(count=5, active=2, intermediate_size=80, normalise_probabilities=True),
)  # fmt: skip
QWEN2_MOE = dataclasses.replace(
    MIXTRAL, family="qwen2_moe", attention_bias=True,
    layers=(LayerSpec(None, ROPE), LayerSpec(None, ROPE, experts=True), LayerSpec(None, ROPE, experts=True)),
    experts=ExpertConfig(12, 4, 40, False, shared_intermediate_size=72, shared_gate=True),
)  # fmt: skip
QWEN3_MOE = dataclasses.replace(
    MIXTRAL, family="qwen3_moe", qk_norm="head", experts=ExpertConfig(16, 8, 48, normalise_probabilities=True)
)
OLMOE = dataclasses.replace(
    MIXTRAL, family="olmoe", qk_norm="full", experts=ExpertConfig(9, 3, 33, normalise_probabilities=False)
)
GEMMA_MOE = dataclasses.replace(GEMMA, layers=(LayerSpec(70, RopeConfig(1e4, 128), experts=True),) * 2,
                                experts=ExpertConfig(6, 2, 50, True, shared_intermediate_size=30))  # fmt: skip
DYNAMIC = dataclasses.replace(
    LLAMA, layers=(LayerSpec(None, RopeConfig(1e4, 64, RopeScaling("dynamic", 2.0, 40))),) * 2
)
LONGROPE = dataclasses.replace(LLAMA, layers=(LayerSpec(None, RopeConfig(1e4, 64, RopeScaling(
    "longrope", original_context=50, attention_factor=1.2, short_factor=(1.0,) * 32,
    long_factor=tuple(1.0 + 0.2 * i for i in range(32))))),) * 2)  # fmt: skip
MIXTURES = {config.family: config for config in (MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE)} | {"gemma_moe": GEMMA_MOE}


class Made:
    """A model, and its decoder in torch, which computes as the reference does or, `with_oracles`, as the kernels do."""

    def __init__(self, model: Model) -> None:
        self.model, self.config = model, model.config
        self.decoder: Decoder = build(model).decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def __call__(self, *arguments: Any) -> Tensor:
        logits: Tensor = self.decoder(*arguments)
        return logits

    def replace(self, name: str, linear: PackedLinear) -> None:
        self.model.replace(name, linear)
        self.decoder = build(self.model).decoder


def decoder(config: ModelConfig, bits: int = 4) -> Made:
    """Random weights of 4 or 8 bits, bf16 (16) or fp32 (32)."""
    random, assembly = np.random.default_rng(0), Assembly(config)
    for name, shape in assembly.expected.items():
        values = random.standard_normal(shape, np.float32)
        if len(shape) == 2:
            assembly.put(name, _linear(name, values * np.float32(shape[1] ** -0.5), bits))
        elif name.endswith(".bias"):
            assembly.put(name, values * np.float32(0.1))
        else:
            assembly.put(name, random.random(shape, np.float32) + np.float32(0.5 - config.norm_offset))
    return Made(Model(config, *assembly.finish()))


def _linear(name: str, weight: Floats, bits: int) -> PackedLinear:
    if name.endswith((".router", ".shared_gate")):  # as loaders keep them
        return DenseLinear.from_weight(weight * np.float32(3))
    if bits == 32:
        return DenseLinear.from_weight(weight)
    if bits == 16:
        return DenseLinear.from_weight(weight, BFLOAT16, packed=True)
    return GroupLinear.quantize(weight, 8 if name == "embedding" else bits, 32)


def with_oracles(made: Made) -> Made:
    """The decoder computing every linear as the native kernels do, activation quantisation included."""
    for _, linear in made.decoder.linears():
        stored = linear.stored
        if isinstance(stored, GroupLinear | DenseLinear) and stored.has_kernel:
            linear.product = stored.oracle
    return made


class TensorPlan:
    """A plan for tensors: what it takes and gives shares their memory."""

    def __init__(self, plan: NativePlan) -> None:
        self.plan = plan

    @property
    def argmax(self) -> Tensor:
        return torch.from_numpy(self.plan.argmax)

    @property
    def nbytes(self) -> int:
        return self.plan.nbytes

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.plan, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*map(_array, arguments), **{key: _array(value) for key, value in options.items()})
            return torch.from_numpy(result) if isinstance(result, np.ndarray) else result

        return call


def compile_plan(made: Made, max_rows: int) -> TensorPlan:
    return TensorPlan(compile_native(made.model, max_rows))


def _array(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, Adapter):
        return Adapter({name: (down.numpy(), up.numpy()) for name, (down, up) in value.weights.items()}, value.scale)
    if isinstance(value, dict):
        return {key: _array(part) for key, part in value.items()}
    return type(value)(map(_array, value)) if isinstance(value, list | tuple) else value


def cache(config: ModelConfig, capacity: int, format: str = "f32") -> Pages:
    return open_view(len(config.layers), config.kv_heads, config.head_dim, capacity, format)


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 133, (count,), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))


def span(start: int, stop: int) -> Tensor:
    return torch.arange(start, stop, dtype=torch.int32)


def feed(plan: TensorPlan, config: ModelConfig, ids: Tensor, sizes: list[int], format: str = "bf16") -> Tensor:
    """Logits of all rows, fed in pieces."""
    made, start, rows = cache(config, len(ids), format), 0, []
    for size in sizes:
        piece, positions = slice(start, start + size), span(start, start + size)
        logits = plan.step(ids[piece], positions, [made.view], [size], span(0, size), lengths=[len(ids)])
        rows.append(logits.clone())
        start += size
    return torch.cat(rows)
