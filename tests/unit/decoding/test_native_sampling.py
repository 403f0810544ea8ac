"""The native sampler chooses the tokens that the NumPy one does."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from thrifty.arrays import Floats
from thrifty.decoding.native_sampling import native_sampler, runs_natively
from thrifty.decoding.possible import Absent
from thrifty.decoding.sampling import ForcedSampler, Sampler
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.errors import PromptError
from thrifty.kernels import dispatch

pytestmark = pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")

SIZES = (1, 7, 272, 1000, 4096, 4160, 49152)


def options_of(chosen: random.Random, size: int) -> dict[str, Any]:
    bias = {chosen.randrange(size): chosen.choice([3.5, -2.0, -math.inf]) for _ in range(3)}
    return {
        "temperature": chosen.choice([0.0, 1e-6, 0.3, 0.7, 1.0, 3.0]),
        "top_k": chosen.choice([0, 0, 1, 5, 40, 300, 1000, size, 10**12]),
        "top_p": chosen.choice([1.0, 1.0, 0.1, 0.9, 0.99, 0.9999]),
        "min_p": chosen.choice([0.0, 0.0, 0.01, 0.5]),
        "repetition_penalty": chosen.choice([1.0, 1.0, 1.3, 0.8]),
        "presence_penalty": chosen.choice([0.0, 0.0, 0.5, -1.0]),
        "frequency_penalty": chosen.choice([0.0, 0.0, 0.3, -0.1]),
        "logit_bias": bias if size > 9 and chosen.random() < 0.3 else {},
        "seed": chosen.randrange(1 << 70),
    }


def row_of(chosen: random.Random, size: int) -> Floats:
    """Random logits, some with many equal ones, some with many masked."""
    generator = np.random.default_rng(chosen.randrange(1 << 30))
    row = generator.standard_normal(size, np.float32) * np.float32(chosen.choice([0.01, 1.0, 8.0]))
    if chosen.random() < 0.2:
        row = np.round(row)
    if chosen.random() < 0.2 and size > 9:
        row[generator.integers(0, size, size // 3)] = -math.inf
    return row


def best_of(row: Floats) -> int:
    """As a plan finds it."""
    best = int(row.argmax())
    return best if math.isfinite(row[best]) else -1


@pytest.mark.parametrize("seed", range(8))
def test_tokens_are_those_of_the_python_sampler(seed: int) -> None:
    chosen = random.Random(seed)
    for _ in range(60):
        size = chosen.choice(SIZES)
        absent = Absent(chosen.sample(range(size), min(5, size // 10)) if chosen.random() < 0.3 else ())
        options = options_of(chosen, size)
        options["logit_bias"] = {
            token: bias for token, bias in options["logit_bias"].items() if token not in absent.ids
        }
        sampler = Sampler(SamplingParameters(**options), size, chosen.randrange(3), absent)
        sampler.observe_prompt([chosen.randrange(size) for _ in range(20)])
        native = native_sampler(sampler)
        row = row_of(chosen, size)
        for _ in range(5):
            try:
                expected = sampler.choose(row).token
            except PromptError:
                expected = -1
            assert native.choose(row, best_of(row), sampler.position) == expected, (size, options)
            sampler.commit(max(expected, 0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}, {"presence_penalty": 1.0}]
)
def test_logits_that_are_no_numbers_have_no_token(options: dict[str, float], value: float) -> None:
    row = np.zeros(300, np.float32)
    row[299] = value
    assert native_sampler(Sampler(SamplingParameters(**options), 300)).choose(row, best_of(row), 0) == -1


def test_what_native_code_leaves_to_python() -> None:
    assert runs_natively(Sampler(SamplingParameters(temperature=1.0), 300))
    assert not runs_natively(Sampler(SamplingParameters(logprobs=0), 300))


def test_forced_tokens_are_given_while_the_logits_are_numbers() -> None:
    sampler, row = ForcedSampler(SamplingParameters(), 300, [5, 6], start=2), np.zeros(300, np.float32)
    native, row[9] = native_sampler(sampler), 1.0
    assert [native.choose(row, 9, position) for position in (2, 3, 4)] == [5, 6, 9]
    row[7] = math.nan
    assert native.choose(row, -1, 2) == -1
    padded = native_sampler(ForcedSampler(SamplingParameters(), 300, [5], absent=Absent([7])))
    assert padded.choose(row, -1, 0) == 5, "what is no token may be no number"


def test_wrong_logits_are_refused() -> None:
    native = native_sampler(Sampler(SamplingParameters(), 300))
    with pytest.raises(ValueError, match=r"logits is float64 \(300,\), expected float32 \(300,\)"):
        native.choose(np.zeros(300), 0, 0)
