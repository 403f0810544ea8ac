"""Gumbel-max sampling: noise by place and token, exact in distribution, replayed, and its posterior."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from thrifty.arrays import Floats
from thrifty.decoding.drawing import distribution
from thrifty.decoding.gumbel import coupled, observe, posterior, standard_noise
from thrifty.decoding.native_sampling import native_sampler, runs_natively
from thrifty.decoding.noise import GumbelNoise
from thrifty.decoding.possible import Absent
from thrifty.decoding.sampling import Sampler
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.errors import PromptError
from thrifty.kernels import dispatch

DRAWS = 100_000
M64 = (1 << 64) - 1


def slow_mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & M64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M64
    return x ^ (x >> 31)


def slow_noise(seed: int, stream: int, place: int, token: int) -> float:
    """One number, as the docstring says it."""
    state = slow_mix((seed ^ 0x6A09E667F3BCC909) & M64)
    state = slow_mix(state ^ slow_mix((stream + 0x5851F42D4C957F2D) & M64))
    state = slow_mix(state ^ slow_mix((place + 0x14057B7EF767814F) & M64))
    u = ((slow_mix((state + token * 0x9E3779B97F4A7C15) & M64) >> 12) + 0.5) / 2**52
    return -math.log(-math.log(u))


def slow_token(row: list[float], options: dict[str, Any], seed: int, stream: int, place: int) -> int:
    """The paper's equation: full noise, the filters as masks, the largest sum."""
    order = sorted(range(len(row)), key=lambda v: (-row[v], v))
    if options.get("top_k"):
        order = order[: options["top_k"]]
    weights = [math.exp((row[v] - row[order[0]]) / options["temperature"]) for v in order]
    whole, kept, total = sum(weights), [], 0.0
    for v, weight in zip(order, weights, strict=True):
        if kept and (total >= options.get("top_p", 1.0) * whole or weight < options.get("min_p", 0.0)):
            break
        kept.append(v)
        total += weight
    return max(kept, key=lambda v: row[v] / options["temperature"] + slow_noise(seed, stream, place, v))


OPTIONS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.1, "top_k": 20},
)


@pytest.mark.parametrize("options", OPTIONS)
def test_tokens_are_those_of_the_slow_formula(options: dict[str, Any]) -> None:
    generator = np.random.default_rng(3)
    for seed in range(40):
        row = (generator.standard_normal(97) * 2).astype(np.float32)
        sampler = Sampler(SamplingParameters(seed=seed, noise="gumbel", **options), 97, stream=seed % 3)  # type: ignore[arg-type]
        for place in range(3):
            assert sampler.choose(row).token == slow_token(row.tolist(), options, seed, seed % 3, place)
            sampler.commit(0)


def counts_of(row: Floats, options: SamplingParameters) -> Floats:
    tokens = [coupled(row, options, standard_noise(7, 0, place, row.size)) for place in range(DRAWS)]
    return np.bincount(tokens, minlength=row.size)


@pytest.mark.long
@pytest.mark.parametrize("options", OPTIONS[:3])
def test_draws_have_the_distribution_of_plain_sampling(options: dict[str, Any]) -> None:
    row = np.array([2.0, 1.5, 1.0, 0.0, -0.5, -1.0, -2.0, 1.2], np.float32)
    parameters = SamplingParameters(**options)
    wanted = distribution(row, parameters) * DRAWS
    seen = counts_of(row, parameters)
    able = wanted > 0
    assert not seen[~able].any()
    statistic = float((np.square(seen - wanted)[able] / wanted[able]).sum())
    assert statistic < 26.1  # chi-square of 7 degrees of freedom or fewer: above it once in 2000


def test_noise_is_gumbel_and_differs_by_everything() -> None:
    noise = standard_noise(1, 2, 3, 200_000)
    assert abs(noise.mean() - 0.5772) < 0.01 and abs(noise.var() - math.pi**2 / 6) < 0.03
    others = [standard_noise(*key, 200_000) for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4))]
    for other in others:
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.01
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.01
    assert (standard_noise(1, 2, 3, 50) == noise[:50]).all()  # a token's noise knows no vocabulary
    assert noise[7] == pytest.approx(slow_noise(1, 2, 3, 7), rel=1e-14)


def test_the_same_noise_makes_near_rows_agree() -> None:
    generator = np.random.default_rng(0)
    options, same, other = SamplingParameters(temperature=1.0), 0, 0
    for place in range(400):
        row = generator.standard_normal(300).astype(np.float32)
        near = row + np.float32(0.05) * generator.standard_normal(300).astype(np.float32)
        here = coupled(row, options, standard_noise(1, 0, place, 300))
        same += coupled(near, options, standard_noise(1, 0, place, 300)) == here
        other += coupled(near, options, standard_noise(2, 0, place, 300)) == here
    assert same > 360 and other < 40


def rejected_noise(row: Floats, token: int, places: range) -> Floats:
    """Slow posterior: noise of all places where the token happens to win."""
    options, kept = SamplingParameters(temperature=1.0), []
    for place in places:
        noise = standard_noise(11, 0, place, row.size)
        if coupled(row, options, noise) == token:
            kept.append(noise)
    return np.array(kept)


@pytest.mark.long
def test_the_posterior_is_that_of_rejection() -> None:
    row = np.array([1.0, 0.2, -0.5, 0.9], np.float32)
    options = SamplingParameters(temperature=1.0)
    slow = rejected_noise(row, 1, range(60_000))
    observed = observe(row, options, 1, 0)
    fast = np.array([posterior(observed, standard_noise(5, 0, place, 4)) for place in range(len(slow))])
    for token in range(4):
        ours, theirs = np.sort(fast[:, token]), np.sort(slow[:, token])
        both = np.sort(np.concatenate([ours, theirs]))
        distance = np.abs(np.searchsorted(ours, both, "right") - np.searchsorted(theirs, both, "right")).max() / len(
            slow
        )
        assert distance < 1.95 * math.sqrt(2 / len(slow)), token  # Kolmogorov and Smirnov, 0.1 %
    intervened = row + np.array([0.0, -0.4, 0.3, 0.0], np.float32)
    rates = [
        np.bincount([coupled(intervened, options, noise) for noise in rows], minlength=4) / len(rows)
        for rows in (fast, slow)
    ]
    assert np.abs(rates[0] - rates[1]).max() < 0.02


@pytest.mark.parametrize("options", [*OPTIONS, {"temperature": 1e-4}, {"temperature": 50.0}])
def test_the_posterior_gives_back_every_token_that_can_be_drawn(options: dict[str, Any]) -> None:
    row = (np.random.default_rng(1).standard_normal(500) * 4).astype(np.float32)
    row[30] = -math.inf
    parameters = SamplingParameters(**options)
    chances = distribution(row, parameters)
    for token in np.flatnonzero(chances > 0):
        noise = posterior(observe(row, parameters, int(token), 4), standard_noise(1, 0, 4, 500))
        assert coupled(row, parameters, noise) == token


def test_a_token_that_could_not_be_drawn_is_refused() -> None:
    row = np.array([3.0, 1.0, -math.inf], np.float32)
    with pytest.raises(
        PromptError, match="token 1 at position 6 .* cannot be drawn there with temperature 1.0, top_k 1"
    ):
        observe(row, SamplingParameters(temperature=1.0, top_k=1), 1, 6)
    with pytest.raises(PromptError, match="token 2"):
        observe(row, SamplingParameters(temperature=1.0), 2, 0)
    with pytest.raises(PromptError, match="noise = 'gumbol'"):
        SamplingParameters(noise="gumbol")  # type: ignore[arg-type]


@pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")
@pytest.mark.parametrize("size", [7, 1000, 49152])
def test_native_tokens_are_the_same(size: int) -> None:
    generator = np.random.default_rng(size)
    for seed, options in enumerate([*OPTIONS, {"temperature": 1e-6}, {"temperature": 0.0}] * 4):
        absent = Absent({1, 5} if seed % 2 else ())
        extra: dict[str, Any] = {"presence_penalty": 0.5, "logit_bias": {2: 1.5}} if seed % 3 == 0 else {}
        sampler = Sampler(
            SamplingParameters(seed=seed, noise=GumbelNoise(), **options, **extra), size, stream=seed % 2, absent=absent
        )
        native = native_sampler(sampler)
        assert runs_natively(sampler)
        for _ in range(4):
            row = (generator.standard_normal(size) * 3).astype(np.float32)
            token = sampler.choose(row).token
            assert native.choose(row, int(row.argmax()), sampler.position) == token
            sampler.commit(token)
