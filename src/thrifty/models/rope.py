"""Rotary position embeddings (arXiv 2104.09864) and the ways to stretch them over longer contexts.

Channels are paired half-split: channel c of the first half turns with channel c of the second half. All
tables are fp32. Dynamic and longrope frequencies depend on the length of the whole sequence, so it is an
argument; the keys that a cache already holds stay as they were rotated.
"""

from __future__ import annotations

import math

import numpy as np

from thrifty.arrays import Array, Floats, Integers
from thrifty.errors import KernelError
from thrifty.models.config.model_config import RopeConfig, RopeScaling


def rotation(
    rope: RopeConfig, positions: Integers, sequence_length: int | Integers | None = None
) -> tuple[Floats, Floats]:
    """Cosines and sines, each [tokens, dimension / 2] fp32, for `positions` [tokens] (integers), or [3, tokens]: time,
    height and width, each for its section of the frequencies (M-RoPE, arXiv 2409.12191, §2.1). Raises KernelError
    where the rope has no sections.

    `sequence_length` is the length in tokens of the sequence that the rows belong to: one number, or
    [tokens] where rows belong to different sequences; by default the highest position plus one.
    """
    if sequence_length is None:
        sequence_length = int(positions.max()) + 1 if positions.size else 1
    frequencies, factor = inverse_frequencies(rope, sequence_length)
    angles = _by_frequency(rope, positions.astype(np.float32)) * frequencies
    # Of angles rounded to fp32, as everywhere; the functions in fp64, where NumPy's are right to the last bit of fp32.
    wide = angles.astype(np.float64)
    return np.cos(wide).astype(np.float32) * factor, np.sin(wide).astype(np.float32) * factor


def _by_frequency(rope: RopeConfig, positions: Floats) -> Floats:
    """[tokens] → [tokens, 1]; [3, tokens] → [tokens, dimension / 2], each frequency with the position of its axis."""
    if positions.ndim == 1:
        return positions[:, None]
    if not rope.sections:
        raise KernelError("three positions a row were given, and this model's rope has one axis; give one a row")
    return np.ascontiguousarray(positions[np.repeat(np.arange(3), rope.sections)].T)


def inverse_frequencies(rope: RopeConfig, sequence_length: int | Integers) -> tuple[Floats, float]:
    """Radians per token of each channel pair, and the factor on cosines and sines.

    [dimension / 2] fp32, or [tokens, dimension / 2] where `sequence_length` [tokens] differs by row and
    matters.
    """
    frequencies, factor = _scaled(rope, sequence_length)
    if not rope.divisors:
        return frequencies, factor
    divisors: Floats = np.array(rope.divisors, np.float32)
    return frequencies / divisors, factor


def depends_on_length(rope: RopeConfig) -> bool:
    """Whether the frequencies change with the length of the sequence."""
    scaling = rope.scaling
    if scaling is None:
        return False
    return scaling.kind == "dynamic" or (scaling.kind == "longrope" and scaling.short_factor != scaling.long_factor)


def length_class(rope: RopeConfig, sequence_length: int) -> int:
    """A number that lengths in tokens have in common if and only if all positions turn alike under them.

    So keys of one sequence serve another of the same class. Always 0 where the length does not matter.
    """
    if not depends_on_length(rope):
        return 0
    assert rope.scaling is not None
    original = rope.scaling.original_context
    return int(sequence_length > original) if rope.scaling.kind == "longrope" else max(sequence_length - original, 0)


def _scaled(rope: RopeConfig, sequence_length: int | Integers) -> tuple[Floats, float]:
    """What `inverse_frequencies` gives without the divisors."""
    scaling = rope.scaling
    if scaling is None:
        return _plain(rope), 1.0
    if scaling.kind == "linear":
        return _plain(rope) / scaling.factor, scaling.attention_factor
    if scaling.kind == "dynamic":
        return _dynamic(rope, scaling, sequence_length), 1.0
    if scaling.kind == "llama3":
        return _llama3(rope, scaling), 1.0
    if scaling.kind == "yarn":
        return _yarn(rope, scaling), scaling.attention_factor
    return _longrope(rope, scaling, sequence_length), scaling.attention_factor


def _exponents(rope: RopeConfig) -> Floats:
    return np.arange(0, rope.dimension, 2, dtype=np.float32) / np.float32(max(rope.dimension, 1))


def _plain(rope: RopeConfig) -> Floats:
    return np.float32(1.0) / _power(rope.theta, _exponents(rope))


def _power(base: float | Array, exponents: Floats) -> Floats:
    """base ^ exponents, rounded to fp32 once."""
    power: Floats = np.power(np.asarray(base, np.float64), exponents.astype(np.float64)).astype(np.float32)
    return power


def _dynamic(rope: RopeConfig, scaling: RopeScaling, sequence_length: int | Integers) -> Floats:
    """NTK-aware: the base grows with the length beyond the original context, theta · s^(d / (d - 2))."""
    length = np.maximum(np.asarray(sequence_length, np.float64), scaling.original_context)
    stretch = scaling.factor * length / scaling.original_context - (scaling.factor - 1.0)
    base = rope.theta * stretch ** (rope.dimension / (rope.dimension - 2))
    return np.float32(1.0) / _power(base.astype(np.float32)[..., None], _exponents(rope))


def _llama3(rope: RopeConfig, scaling: RopeScaling) -> Floats:
    """Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between are blended."""
    frequencies = _plain(rope)
    turns = scaling.original_context * frequencies / (2 * math.pi)  # full turns within the original context
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)


def _yarn(rope: RopeConfig, scaling: RopeScaling) -> Floats:
    """YaRN (arXiv 2309.00071, §3.2, "NTK-by-parts"): a linear ramp over channels from kept to divided."""
    frequencies = _plain(rope)
    low = _channel_that_turns(scaling.beta_fast, rope, scaling)
    high = _channel_that_turns(scaling.beta_slow, rope, scaling)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dimension - 1)
    width = high - low if high != low else 0.001
    channels = np.arange(rope.dimension // 2, dtype=np.float32)
    divided = np.clip((channels - low) / width, 0.0, 1.0)
    return frequencies / scaling.factor * divided + frequencies * (1.0 - divided)


def _channel_that_turns(times: float, rope: RopeConfig, scaling: RopeScaling) -> float:
    """The (fractional) channel pair that makes `times` full turns within the original context."""
    wavelengths = math.log(scaling.original_context / (times * 2 * math.pi))
    return rope.dimension * wavelengths / (2 * math.log(rope.theta))


def _longrope(rope: RopeConfig, scaling: RopeScaling, sequence_length: int | Integers) -> Floats:
    """LongRoPE (arXiv 2402.13753): one divisor a channel pair, another set beyond the original context."""
    is_long = np.asarray(sequence_length)[..., None] > scaling.original_context
    long_factor, short_factor = (np.array(each, np.float32) for each in (scaling.long_factor, scaling.short_factor))
    factors = np.where(is_long, long_factor, short_factor)
    return np.float32(1.0) / (factors * _power(rope.theta, _exponents(rope)))
