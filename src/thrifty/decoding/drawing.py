"""Drawing a token from a row of scores: counter-based randomness, and the inverse CDF of what the filters leave."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thrifty import arrays
from thrifty.arrays import Floats, Integers
from thrifty.decoding.sampling_parameters import SamplingParameters

NUCLEUS_PROBE = 256  # candidates sorted first
SECOND_PROBE = 2048  # candidates sorted where the first hold less than top_p; the whole vocabulary where these do too
BLOCK = 64  # scores of which only the largest is compared, until it is known which blocks matter
MASK = (1 << 64) - 1

Weights = npt.NDArray[np.float64]


def uniform(seed: int, stream: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments only (SplitMix64's finaliser, Steele et al. 2014,
    chained).
    """
    state = mix(seed & MASK)
    state = mix(state ^ mix((stream + 0x5851F42D4C957F2D) & MASK))
    state = mix(state ^ mix((position + 0x14057B7EF767814F) & MASK))
    return (state >> 11) / float(1 << 53)


def draw(scores: Floats, options: SamplingParameters, number: float) -> int:
    """Inverse-CDF sampling after temperature, top_k, top_p and min_p. scores: [vocabulary] fp32; number:
    [0, 1).
    """
    unfiltered = options.top_k in (0, scores.size) and options.top_p == 1.0 and options.min_p == 0.0
    if unfiltered:
        return inverse(_weights(scores, float(scores.max()), options), number)
    weights, ids = _filtered(scores, options)
    return int(ids[inverse(weights, number)])


def candidates(scores: Floats, options: SamplingParameters) -> Integers | None:
    """The ids that top_k, top_p and min_p leave of scores [vocabulary] fp32, best first; None where they leave all."""
    unfiltered = options.top_k in (0, scores.size) and options.top_p == 1.0 and options.min_p == 0.0
    return None if unfiltered else _filtered(scores, options)[1]


def distribution(scores: Floats, options: SamplingParameters) -> Weights:
    """The probabilities [vocabulary] fp64 that `draw` draws from: after temperature, top_k, top_p and min_p. Greedy
    options put all of it on the largest score.
    """
    chances = np.zeros(scores.size)
    if options.greedy:
        chances[int(scores.argmax())] = 1.0
        return chances
    weights, ids = _filtered(scores, options)
    chances[ids] = weights / weights.sum()
    return chances


def _weights(scores: Floats, best: float, options: SamplingParameters) -> Weights:
    """Unnormalised probabilities in fp64, 1 for the best: a tiny temperature cannot overflow."""
    with np.errstate(over="ignore"):
        weights: Weights = np.exp((scores.astype(np.float64) - best) / options.temperature)
    return weights


def inverse(weights: Weights, number: float) -> int:
    """The place in weights [n], not all 0, that a number in [0, 1) falls to."""
    cumulative = np.cumsum(weights)
    place = int(np.searchsorted(cumulative, number * float(cumulative[-1]), side="right"))
    if place == weights.size:  # the product was rounded up to the whole: the last token that has a weight
        place = int(np.searchsorted(cumulative, cumulative[-1]))
    return place


def _filtered(scores: Floats, options: SamplingParameters) -> tuple[Weights, Integers]:
    """The weights that pass top_k, top_p and min_p, falling, and their ids. Sorts only as far as it
    must.
    """
    size = scores.size
    limit = min(options.top_k, size) or size
    width = limit if options.top_k else min(limit, NUCLEUS_PROBE)
    total = None
    if not options.top_k and options.top_p < 1.0:
        total = float(_weights(scores, float(scores.max()), options).sum())
    while True:
        values, ids = largest(scores, width)
        weights = _weights(values, float(values[0]), options)
        keep = _kept(weights, float(weights.sum()) if total is None else total, options)
        if keep < width or width == limit:
            return weights[:keep], ids[:keep]
        width = min(limit, SECOND_PROBE) if width < SECOND_PROBE else limit


def largest(scores: Floats, count: int) -> tuple[Floats, Integers]:
    """The `count` largest of scores [n], falling, of equal ones the first, and their places. Faster than a sort.

    No fewer than `count` scores are as large as the count-th largest of the blocks' maxima: what is less is left out.
    """
    blocks = scores.size // BLOCK
    if count < blocks:
        maxima = scores[: blocks * BLOCK].reshape(blocks, BLOCK).max(axis=1)
        bound = np.partition(maxima, blocks - count)[blocks - count]
        places = np.flatnonzero(scores >= bound)
        values = scores[places]
        order = arrays.largest(values, count)
        return values[order], places[order]
    if count < scores.size:
        bound = np.partition(scores, scores.size - count)[scores.size - count]
        places = np.flatnonzero(scores >= bound)
        order = arrays.largest(scores[places], count)
        return scores[places[order]], places[order]
    order = arrays.largest(scores, count)
    return scores[order], order


def _kept(weights: Weights, total: float, options: SamplingParameters) -> int:
    """How many of the falling weights stay: the fewest that hold top_p of `total`, none below min_p of
    the best.
    """
    keep = weights.size
    if options.top_p < 1.0:
        keep = min(keep, int(np.searchsorted(np.cumsum(weights), options.top_p * total)) + 1)
    if options.min_p > 0.0:
        keep = min(keep, int(np.count_nonzero(weights >= options.min_p)))
    return max(1, keep)


def mix(value: int) -> int:
    """SplitMix64's step and finaliser of a 64-bit number."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)
