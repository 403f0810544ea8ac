"""Gumbel-max sampling with noise that belongs to a place in the answer and a token, so that an answer can be replayed.

Chatzi et al. 2024 (arXiv 2409.17027), section 3: the next token is the arg-max over v of log p_v + G_v, and the same G
in another run makes its tokens the counterfactual ones. Ravfogel et al. 2024 (arXiv 2411.07180): noise for a text that
was observed and not drawn here comes from the posterior (hindsight Gumbel sampling).
"""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Floats
from thrifty.decoding.drawing import MASK, Weights, candidates, mix
from thrifty.decoding.noise import GumbelNoise, Observed
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.errors import PromptError

PURPOSE = 0x6A09E667F3BCC909  # keeps these numbers apart from other draws by the same seed
MARGIN = 1e-9  # the observed token's value lies so far above all others: more than rounding takes


def standard_noise(seed: int, stream: int, position: int, size: int) -> Weights:
    """[size] fp64 standard Gumbel numbers −log(−log u), one a token; u is SplitMix64's number `token` (Steele et al.
    2014) of a state that the other arguments make.
    """
    state = mix((seed ^ PURPOSE) & MASK)
    state = mix(state ^ mix((stream + 0x5851F42D4C957F2D) & MASK))
    state = mix(state ^ mix((position + 0x14057B7EF767814F) & MASK))
    values = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(state)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    uniform = ((values >> np.uint64(12)).astype(np.float64) + 0.5) / float(1 << 52)  # inside (0, 1), both ends out
    noise: Weights = -np.log(-np.log(uniform))
    return noise


def noise_at(noise: GumbelNoise, seed: int, stream: int, position: int, size: int) -> Weights:
    """[size] fp64: the noise of one place, from its posterior where a token was observed there."""
    fresh = standard_noise(seed, stream, position, size)
    observed = noise.observed.get(position)
    return fresh if observed is None else posterior(observed, fresh)


def coupled(scores: Floats, options: SamplingParameters, noise: Weights) -> int:
    """The arg-max of scores / temperature + noise over the tokens that top_k, top_p and min_p leave, of equal ones the
    first. scores: [vocabulary] fp32; noise: [vocabulary] fp64.
    """
    ids = candidates(scores, options)
    if ids is None:
        return int((_scaled(scores, options.temperature) + noise).argmax())
    ids = np.sort(ids)
    return int(ids[(_scaled(scores[ids], options.temperature) + noise[ids]).argmax()])


def posterior(observed: Observed, fresh: Weights) -> Weights:
    """[vocabulary] fp64: noise under which the observed token wins at its place, with its posterior distribution.

    fresh: independent standard Gumbel numbers [vocabulary]. The largest value φ_v + G_v of all is a Gumbel number at
    log Σ exp φ_v whoever has it; the other values are Gumbel numbers at φ_v, truncated at it. What could not be drawn
    there says nothing of its noise: that stays as it is.
    """
    able = np.isfinite(observed.scores)
    locations = _scaled(observed.scores[able], observed.temperature)
    place = int(np.count_nonzero(able[: observed.token]))
    most = float(np.log(np.exp(locations).sum())) + float(fresh[observed.token])
    values = locations + fresh[able]
    truncated = np.minimum(values, most) - np.log1p(np.exp(-np.abs(values - most)))  # −log(e^−most + e^−value)
    truncated = np.minimum(truncated, most - MARGIN)
    truncated[place] = most
    noise = fresh.copy()
    noise[able] = truncated - locations
    return noise


def observe(scores: Floats, options: SamplingParameters, token: int, position: int) -> Observed:
    """A token that was observed where tokens have these scores [vocabulary] fp32 (after penalties and biases).

    Raises PromptError where the options do not let it be drawn.
    """
    ids = candidates(scores, options)
    left = np.full_like(scores, -np.inf)
    if ids is None:
        left[:] = scores
    else:
        left[ids] = scores[ids]
    if not np.isfinite(left[token]) or _scaled(left, options.temperature)[token] == -np.inf:
        raise PromptError(
            f"token {token} at position {position} of the observed text cannot be drawn there with temperature "
            f"{options.temperature}, top_k {options.top_k}, top_p {options.top_p} and min_p {options.min_p}: give the "
            "options that it was drawn with, or leave the filters out"
        )
    return Observed(token, left, options.temperature)


def _scaled(scores: Floats, temperature: float) -> Weights:
    """Scores over the temperature in fp64, 0 for the best: a tiny temperature cannot overflow."""
    with np.errstate(over="ignore"):
        scaled: Weights = (scores.astype(np.float64) - float(scores.max())) / temperature
    return scaled
