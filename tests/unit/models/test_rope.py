"""Rotary tables against closed forms and transformers' own functions, and rows of different sequences
together.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from thrifty.errors import ConfigError
from thrifty.models.config.model_config import RopeConfig, RopeScaling, longrope_attention_factor, yarn_attention_factor
from thrifty.models.rope import depends_on_length, inverse_frequencies, length_class, rotation

LONG = RopeScaling(
    "longrope", 4.0, 64, attention_factor=1.2, short_factor=(1.0, 1.1, 1.2, 1.3), long_factor=(2.0, 3.0, 4.0, 5.0)
)
SCALINGS: dict[str, RopeScaling | None] = {
    "plain": None,
    "linear": RopeScaling("linear", 2.0),
    "dynamic": RopeScaling("dynamic", 4.0, 64),
    "llama3": RopeScaling("llama3", 8.0, 32),
    "yarn": RopeScaling("yarn", 4.0, 64, attention_factor=1.14),
    "longrope": LONG,
}


def rope(name: str) -> RopeConfig:
    return RopeConfig(10_000.0, 8, SCALINGS[name])


def test_plain_frequencies() -> None:
    frequencies, factor = inverse_frequencies(rope("plain"), 1)
    assert factor == 1.0
    np.testing.assert_allclose(frequencies, [1.0, 0.1, 0.01, 0.001], rtol=1e-6)


def test_the_tables_are_rounded_from_the_exact_angles() -> None:
    """Of angles in fp32: position times frequency."""
    positions = np.array([0, 1, 7, 4095, 131_071])
    cos, sin = rotation(rope("plain"), positions)
    assert cos.dtype == sin.dtype == np.float32
    for row, position in enumerate(positions.tolist()):
        for channel, frequency in enumerate(inverse_frequencies(rope("plain"), 1)[0]):
            angle = float(np.float32(position) * frequency)
            assert (cos[row, channel], sin[row, channel]) == (np.float32(math.cos(angle)), np.float32(math.sin(angle)))


def test_no_channel_may_turn() -> None:
    cos, sin = rotation(RopeConfig(10_000.0, 0), np.arange(3))
    assert cos.shape == sin.shape == (3, 0)


@pytest.mark.parametrize("name", SCALINGS)
def test_lengths_by_row_equal_sequences_alone(name: str) -> None:
    """Rows of three sequences of different lengths get the tables they would get alone."""
    config, lengths = rope(name), [10, 64, 200]
    positions = np.concatenate([np.arange(length - 4, length) for length in lengths])
    together = rotation(config, positions, np.repeat(lengths, 4))
    alone = [rotation(config, np.arange(length - 4, length)) for length in lengths]
    for table, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert np.array_equal(table, np.concatenate(parts))


@pytest.mark.parametrize("name", SCALINGS)
def test_dependence_on_length_is_declared(name: str) -> None:
    short, _ = inverse_frequencies(rope(name), 16)
    long, _ = inverse_frequencies(rope(name), 4096)
    assert np.array_equal(short, long) is not depends_on_length(rope(name))


def test_dynamic_within_the_original_context_is_plain() -> None:
    assert np.array_equal(inverse_frequencies(rope("dynamic"), 64)[0], inverse_frequencies(rope("plain"), 64)[0])


def test_longrope_switches_beyond_the_original_context() -> None:
    plain = inverse_frequencies(rope("plain"), 1)[0]
    np.testing.assert_allclose(inverse_frequencies(rope("longrope"), 64)[0], plain / LONG.short_factor, rtol=1e-6)
    np.testing.assert_allclose(inverse_frequencies(rope("longrope"), 65)[0], plain / LONG.long_factor, rtol=1e-6)
    cos, _ = rotation(rope("longrope"), np.array([0]))
    np.testing.assert_allclose(cos, np.full((1, 4), 1.2), rtol=1e-6)


EQUAL = RopeScaling("longrope", 4.0, 64, short_factor=LONG.short_factor, long_factor=LONG.short_factor)


def test_equal_divisors_for_all_lengths_are_no_dependence() -> None:
    assert not depends_on_length(RopeConfig(10_000.0, 8, EQUAL))


@pytest.mark.parametrize("config", [*map(rope, SCALINGS), RopeConfig(10_000.0, 8, EQUAL)])
def test_lengths_of_one_class_and_only_those_turn_alike(config: RopeConfig) -> None:
    lengths = [1, 2, 63, 64, 65, 66, 1000]
    tables = [inverse_frequencies(config, length)[0].tolist() for length in lengths]
    for one, first in zip(lengths, tables, strict=True):
        for other, second in zip(lengths, tables, strict=True):
            assert (length_class(config, one) == length_class(config, other)) is (first == second), (one, other)


@pytest.mark.parametrize("name", SCALINGS)
def test_divisors_apply_on_top_of_every_scaling(name: str) -> None:
    divisors = (1.0, 2.0, 4.0, 8.0)
    for length in (10, 100):
        plain, factor = inverse_frequencies(rope(name), length)
        divided, same_factor = inverse_frequencies(RopeConfig(10_000.0, 8, SCALINGS[name], divisors), length)
        np.testing.assert_allclose(divided * divisors, plain, rtol=1e-6)
        assert factor == same_factor


def test_divisors_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"rope.divisors has 3 entries; it must have 4"):
        RopeConfig(10_000.0, 8, None, (1.0, 2.0, 3.0))
    with pytest.raises(ConfigError, match=r"rope.divisors is 0.0"):
        RopeConfig(10_000.0, 8, None, (1.0, 2.0, 3.0, 0.0))


def test_attention_factors() -> None:
    assert yarn_attention_factor(1.0) == 1.0
    assert yarn_attention_factor(math.e, 2.0) == pytest.approx(1.2)
    assert longrope_attention_factor(1.0, 4096) == 1.0
    assert longrope_attention_factor(4096.0, 4096) == pytest.approx(math.sqrt(2.0))


@pytest.mark.parametrize(
    ("parameters", "length"),
    [
        ({"rope_type": "linear", "factor": 2.5}, 40),
        ({"rope_type": "dynamic", "factor": 4.0}, 40),
        ({"rope_type": "dynamic", "factor": 4.0}, 1000),
        (
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            40,
        ),
        ({"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}, 40),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "truncate": False}, 40),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2, "attention_factor": 0.5}, 40),
    ],
)
def test_real_sizes_equal_transformers(parameters: dict[str, Any], length: int) -> None:
    """At a head of 128 and a base of 500,000, where rounding would show."""
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle (extra 'dev')")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from thrifty.models.config.huggingface import from_huggingface

    sizes = {"hidden_size": 256, "num_attention_heads": 2, "head_dim": 128, "max_position_embeddings": 512}
    config = transformers.LlamaConfig(**sizes, rope_parameters={"rope_theta": 500_000.0, **parameters})
    expected, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=length)
    ours = from_huggingface(config.to_dict()).layers[0].rope
    found, our_factor = inverse_frequencies(ours, length)
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-6)
    assert our_factor == pytest.approx(factor)
