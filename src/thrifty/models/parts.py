"""The parts that a decoder is made of, by name and shape, for every family of models."""

from __future__ import annotations

from collections.abc import Iterator

from thrifty.errors import ConfigError
from thrifty.models.config.model_config import ExpertConfig, ModelConfig

Part = tuple[str, tuple[int, ...]]
EXACT = (".router", ".shared_gate")
"""Small matrices whose rounding would change which experts a token meets: every loader keeps them in fp32."""


def parts(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of all that a decoder needs, in its order: linears [out, in], their biases [out], norms [width].

    Linears are called as "layers.0.attention.query" or "layers.0.mlp.experts.gate.7", a bias as what it belongs to and
    ".bias". Raises ConfigError naming a layer whose mixer has no parts here.
    """
    return dict(_parts(config))


def _parts(config: ModelConfig) -> Iterator[Part]:
    yield from _linear("embedding", config.vocabulary_size, config.hidden_size)
    for index, layer in enumerate(config.layers):
        name = f"layers.{index}"
        if config.pre_norms:
            yield from _norm(f"{name}.attention_norm", config)
        yield from _mixer(name, config, index)
        if config.post_norms:
            yield from _norm(f"{name}.post_attention_norm", config)
        if config.pre_norms:
            yield from _norm(f"{name}.mlp_norm", config)
        if layer.experts and config.experts is not None:
            yield from _mixture(f"{name}.mlp", config, config.experts)
        else:
            yield from _mlp(f"{name}.mlp", config, config.inner(index))
        if config.post_norms:
            yield from _norm(f"{name}.post_mlp_norm", config)
    yield from _norm("final_norm", config)
    if not config.tied_embeddings:
        yield from _linear("head", config.vocabulary_size, config.hidden_size)


def _linear(name: str, rows: int, columns: int, bias: bool = False) -> Iterator[Part]:
    yield name, (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _norm(name: str, config: ModelConfig) -> Iterator[Part]:
    yield name, (config.hidden_size,)
    if config.norm == "layer":
        yield f"{name}.bias", (config.hidden_size,)


def _mixer(name: str, config: ModelConfig, index: int) -> Iterator[Part]:
    layer = config.layers[index]
    if layer.mixer == "latent":
        raise ConfigError(f"{name}.mixer is 'latent', which is not built yet; attention and recurrent layers are.")
    if layer.recurrent is not None:
        yield from layer.recurrent.parts(f"{name}.recurrent", config.hidden_size)
    else:
        yield from _attention(f"{name}.attention", config, index)


def _attention(name: str, config: ModelConfig, index: int) -> Iterator[Part]:
    heads, kv_heads, head_dim = config.widths(index)
    hidden, queries, keys = config.hidden_size, heads * head_dim, kv_heads * head_dim
    yield from _linear(f"{name}.query", queries, hidden, config.attention_bias)
    yield from _linear(f"{name}.key", keys, hidden, config.attention_bias)
    yield from _linear(f"{name}.value", keys, hidden, config.attention_bias)
    yield from _linear(f"{name}.output", hidden, queries, config.output_bias)
    if config.qk_norm != "none":
        is_whole = config.qk_norm == "full"
        yield f"{name}.query_norm", (queries if is_whole else head_dim,)
        yield f"{name}.key_norm", (keys if is_whole else head_dim,)


def _mlp(name: str, config: ModelConfig, inner: int) -> Iterator[Part]:
    if config.mlp == "gated":
        yield from _linear(f"{name}.gate", inner, config.hidden_size, config.mlp_bias)
    yield from _linear(f"{name}.up", inner, config.hidden_size, config.mlp_bias)
    yield from _linear(f"{name}.down", config.hidden_size, inner, config.mlp_bias)


def _mixture(name: str, config: ModelConfig, experts: ExpertConfig) -> Iterator[Part]:
    hidden, inner = config.hidden_size, experts.intermediate_size
    yield from _linear(f"{name}.router", experts.count, hidden)
    for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        for index in range(experts.count):
            yield from _linear(f"{name}.experts.{part}.{index}", *shape)
    if experts.shared_intermediate_size:
        yield from _mlp(f"{name}.shared", config, experts.shared_intermediate_size)
    if experts.shared_gate:
        yield from _linear(f"{name}.shared_gate", 1, hidden)
