"""The ropes of GGUF files: metadata and divisors together, against llama.cpp's formula written out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import gguf_files

from thrifty.errors import CheckpointError
from thrifty.models.config.model_config import RopeConfig, as_dict, from_dict
from thrifty.models.gguf.source import GGUFSource
from thrifty.models.rope import inverse_frequencies

HALF, BASE, CONTEXT = 8, 10_000.0, 64
RAMP = np.linspace(1, 8, HALF).astype(np.float32)
LINEAR = {"type": "linear", "factor": 4.0}
YARN = {"type": "yarn", "factor": 4.0, "original_context_length": 32}


def opened(tmp_path: Path, scaling: Mapping[str, Any], **tensors: np.ndarray) -> GGUFSource:
    """A tiny file with these fields of `rope.scaling`; tensors by name without ".weight"."""
    fields = {**gguf_files.LLAMA_FIELDS, **{f"{{arch}}.rope.scaling.{name}": value for name, value in scaling.items()}}
    named = {f"{name}.weight": values for name, values in tensors.items()}
    return GGUFSource(gguf_files.write(tmp_path / "m.gguf", "llama", fields, {**gguf_files.llama_tensors(), **named}))


def rope(tmp_path: Path, scaling: Mapping[str, Any], **tensors: np.ndarray) -> RopeConfig:
    return opened(tmp_path, scaling, **tensors).config.layers[0].rope


def turns(times: float, context: int) -> float:
    """The channel pair that makes `times` full turns within `context` tokens."""
    return 2 * HALF * math.log(context / (times * 2 * math.pi)) / (2 * math.log(BASE))


def expected(scaling: Mapping[str, Any], divisors: np.ndarray) -> tuple[np.ndarray, float]:
    """Radians a token, and the factor on cosines and sines: one channel pair after another."""
    kind, factor = scaling.get("type", "linear"), scaling.get("factor", 1.0) or 1.0
    scale = 1.0 if kind == "none" else 1.0 / factor
    original = scaling.get("original_context_length", CONTEXT)
    low = max(0.0, math.floor(turns(32.0, original)))
    high = min(2 * HALF - 1.0, math.ceil(turns(1.0, original)))
    found = []
    for channel in range(HALF):
        angle = BASE ** (-channel / HALF) / float(divisors[channel])
        ramp = 1 - min(1.0, max(0.0, (channel - low) / max(0.001, high - low))) if kind == "yarn" else 0.0
        found.append(angle * scale * (1 - ramp) + angle * ramp)
    magnitude = scaling.get("attn_factor", 1.0) * (1 + 0.1 * math.log(factor) if kind == "yarn" else 1.0)
    return np.array(found), magnitude


@pytest.mark.parametrize("divided", [False, True], ids=["plain", "rope_freqs"])
@pytest.mark.parametrize(
    "scaling",
    [
        {},
        {"type": "none"},
        {"type": "none", "factor": 4.0},  # "none" never scales
        LINEAR,
        {"factor": 2.5},  # without a type it is linear
        {"type": "linear", "factor": 0.0},  # 0 stands for no factor
        {"type": "linear", "attn_factor": 1.25},
        {**LINEAR, "attn_factor": 1.25},
        YARN,
        {**YARN, "attn_factor": 0.8},
        {"type": "yarn", "factor": 8.0},
    ],
    ids=str,
)
def test_scaling_and_divisors_both_apply(tmp_path: Path, scaling: dict[str, Any], divided: bool) -> None:
    found = rope(tmp_path, scaling, **({"rope_freqs": RAMP} if divided else {}))
    frequencies, factor = inverse_frequencies(found, 10)
    wanted, magnitude = expected(scaling, RAMP if divided else np.ones(HALF))
    np.testing.assert_allclose(frequencies, wanted, rtol=2e-6)
    assert factor == pytest.approx(magnitude)


def test_the_older_name_of_the_factor(tmp_path: Path) -> None:
    fields = {**gguf_files.LLAMA_FIELDS, "{arch}.rope.scale_linear": 2.0}
    tensors = {**gguf_files.llama_tensors(), "rope_freqs.weight": RAMP}
    source = GGUFSource(gguf_files.write(tmp_path / "m.gguf", "llama", fields, tensors))
    frequencies, _ = inverse_frequencies(source.config.layers[0].rope, 1)
    np.testing.assert_allclose(frequencies, expected({"factor": 2.0}, RAMP)[0], rtol=2e-6)


def test_longrope_with_a_factor(tmp_path: Path) -> None:
    """The set of divisors is chosen by the length, and the factor divides as well."""
    scaling = {"type": "longrope", "factor": 2.0, "original_context_length": 16, "attn_factor": 1.5}
    found = rope(tmp_path, scaling, rope_factors_short=RAMP, rope_factors_long=3 * RAMP)
    for length, divisors in ((16, RAMP), (17, 3 * RAMP)):
        frequencies, factor = inverse_frequencies(found, length)
        np.testing.assert_allclose(frequencies, expected({"factor": 2.0}, divisors)[0], rtol=2e-6)
        assert factor == 1.5


def test_divisors_survive_the_converted_form(tmp_path: Path) -> None:
    config = opened(tmp_path, LINEAR, rope_freqs=RAMP).config
    assert from_dict(as_dict(config)) == config
    assert config.layers[0].rope.divisors == tuple(RAMP.tolist())


@pytest.mark.parametrize(
    ("scaling", "tensors", "message"),
    [
        ({}, {"rope_freqs": np.ones(7)}, "tensor 'rope_freqs.weight' has shape [7], not [8]"),
        ({}, {"rope_freqs": np.zeros(8)}, "tensor 'rope_freqs.weight' holds 0.0; its divisors must lie between"),
        ({}, {"rope_freqs": np.full(8, np.nan)}, "tensor 'rope_freqs.weight' holds nan"),
        (YARN, {"rope_factors_short": RAMP}, "'rope_factors_short.weight' does not go with 'llama.rope.scaling.type'"),
        ({"type": "longrope"}, {"rope_freqs": RAMP}, "'rope_freqs.weight' does not go with"),
        ({"type": "longrope"}, {"rope_factors_short": RAMP}, "tensor 'rope_factors_long.weight' is missing"),
        ({"factor": -2.0}, {}, "'llama.rope.scaling.factor' is -2.0; it must lie between 0.001 and 1e6"),
        ({**YARN, "yarn_ext_factor": 0.5}, {}, "'llama.rope.scaling.yarn_ext_factor' is 0.5; only 1 is supported"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, scaling: dict[str, Any], tensors: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(CheckpointError) as error:
        opened(tmp_path, scaling, **tensors)
    assert message in str(error.value)
