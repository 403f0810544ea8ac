"""Rotary settings of `config.json`, in the old spelling (`rope_scaling`) and the new one
(`rope_parameters`).
"""

from __future__ import annotations

from thrifty.errors import ConfigError, nearest
from thrifty.models.config.fields import Fields
from thrifty.models.config.harmless import EXPLAINED
from thrifty.models.config.model_config import (
    LIMITS,
    RopeConfig,
    RopeScaling,
    longrope_attention_factor,
    yarn_attention_factor,
)

LAYER_TYPES = ("full_attention", "sliding_attention")
KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def read_ropes(
    fields: Fields, head_dim: int, context: int, thetas: dict[str, float], rotated: float | None = None
) -> dict[str, RopeConfig]:
    """The rope of each layer type. `thetas`: the family's default base of each type; `context`: the
    config's length; `rotated`: the share of a head's channels that turns by default, None where all must.

    A file gives one set of parameters for all layers, or one for each layer type. Gemma's older files give
    `rope_theta` and `rope_scaling` for its global layers and `rope_local_base_freq` for the local ones.
    """
    table = fields.table("rope_scaling")
    parameters = fields.table("rope_parameters")
    local = fields.number("rope_local_base_freq", 1.0, 1e12, thetas["sliding_attention"])
    stated = fields.raw("rope_theta") is not None
    theta = fields.number("rope_theta", 1.0, 1e12, thetas["full_attention"])
    shared = thetas["full_attention"] == thetas["sliding_attention"]
    bases = {"full_attention": theta, "sliding_attention": theta if shared and stated else local}
    original = fields.raw("original_max_position_embeddings")
    rotated = _rotated(fields, rotated)
    if parameters is not None and any(name in LAYER_TYPES for name in parameters.data):
        tables = {name: parameters.table(name) for name in LAYER_TYPES}
        parameters.finish("nested rope parameters")
        if table is not None:
            raise ConfigError("rope_scaling is set beside rope_parameters by layer type; keep one of them.")
    else:
        # The older spelling wins where both are there; a scaling of Gemma's is for its global layers only.
        table = parameters if table is None or not table.data else table
        tables = {"full_attention": table, "sliding_attention": table if shared else None}
    return {name: _rope(tables[name], head_dim, context, bases[name], original, rotated) for name in LAYER_TYPES}


def extended_context(context: int, ropes: dict[str, RopeConfig]) -> int:
    """The tokens that a model serves: `context`, or more where its scaling stretches beyond it."""
    scaling = ropes["full_attention"].scaling
    if scaling is not None and scaling.kind in ("dynamic", "yarn", "longrope"):
        context = max(context, min(int(scaling.original_context * scaling.factor), LIMITS["context_length"]))
    return context


def _rope(
    fields: Fields | None, head_dim: int, context: int, theta: float, original: object, rotated: float | None
) -> RopeConfig:
    if fields is None:
        return RopeConfig(theta, _dimension(head_dim, rotated))
    theta = fields.number("rope_theta", 1.0, 1e12, theta)
    dimension = _dimension(head_dim, _rotated(fields, rotated))
    kind = fields.text("rope_type", fields.text("type", "default"))
    if kind in ("su", "yarn") and "long_factor" in fields.data and rotated is not None:  # older names in phi3's files
        kind = "longrope"
    if kind not in KINDS:
        known = nearest(kind[:40], KINDS)
        raise ConfigError(f"{fields.prefix}rope_type {kind!r:.80} is not supported. {known}")
    if kind in ("default", "linear", "dynamic"):  # transformers writes it, and reads it for none of them
        fields.raw("original_max_position_embeddings")
    scaling = None if kind == "default" else _scaling(fields, kind, context, original)
    fields.finish(f"rope type {kind!r}")
    return RopeConfig(theta, dimension, scaling)


def _rotated(fields: Fields, default: float | None) -> float | None:
    """The share of a head's channels that turns; where `default` is None the family's code turns all of them."""
    if default is not None:
        return fields.number("partial_rotary_factor", 0.0, 1.0, default)
    partial = fields.raw("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        reason = EXPLAINED["partial_rotary_factor"]
        raise ConfigError(f"{fields.prefix}partial_rotary_factor is {partial!r:.80}: {reason}.")
    return None


def _dimension(head_dim: int, rotated: float | None) -> int:
    return head_dim if rotated is None else int(head_dim * rotated)


def _scaling(fields: Fields, kind: str, context: int, original: object) -> RopeScaling:
    if kind == "linear":
        return RopeScaling("linear", factor=fields.number("factor", 1e-3, 1e6))
    if kind == "dynamic":
        return RopeScaling("dynamic", factor=fields.number("factor", 1e-3, 1e6), original_context=context)
    name = "original_max_position_embeddings"
    trained = fields.integer(name, low=1, high=LIMITS["original_context"], default=context)
    if original is not None:  # a value beside the table goes before the one inside it
        trained = Fields({name: original}).integer(name, low=1, high=LIMITS["original_context"])
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor=fields.number("factor", 1e-3, 1e6),
            original_context=trained,
            low_frequency_factor=fields.number("low_freq_factor", 1e-6, 1e6),
            high_frequency_factor=fields.number("high_freq_factor", 1e-6, 1e6),
        )
    factor = fields.number("factor", 1e-3, 1e6, context / trained)
    return _yarn(fields, factor, trained) if kind == "yarn" else _longrope(fields, factor, trained)


def _yarn(fields: Fields, factor: float, trained: int) -> RopeScaling:
    mscale = fields.number("mscale", 0.0, 1e6, 0.0)
    every = fields.number("mscale_all_dim", 0.0, 1e6, 0.0)
    implied = yarn_attention_factor(factor)
    if mscale and every:
        implied = yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, every)
    return RopeScaling(
        "yarn",
        factor=factor,
        original_context=trained,
        attention_factor=fields.number("attention_factor", 1e-6, 1e6, implied),
        beta_fast=fields.number("beta_fast", 0.0, 1e6, 32.0) or 32.0,
        beta_slow=fields.number("beta_slow", 0.0, 1e6, 1.0) or 1.0,
        truncate=fields.flag("truncate", True),
    )


def _longrope(fields: Fields, factor: float, trained: int) -> RopeScaling:
    implied = longrope_attention_factor(factor, trained)
    return RopeScaling(
        "longrope",
        factor=factor,
        original_context=trained,
        attention_factor=fields.number("attention_factor", 1e-6, 1e6, implied),
        short_factor=fields.numbers("short_factor"),
        long_factor=fields.numbers("long_factor"),
    )
