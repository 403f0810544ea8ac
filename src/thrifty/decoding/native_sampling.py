"""Samplers in native code: the same tokens from the same logits, without Python in between."""

from __future__ import annotations

from typing import Any

import numpy as np

from thrifty.decoding.drawing import MASK
from thrifty.decoding.sampling import ForcedSampler, Sampler
from thrifty.kernels import dispatch

LARGEST_TOP_K = (1 << 31) - 1  # beyond every vocabulary


def runs_natively(sampler: Sampler) -> bool:
    """Whether native code can choose the sampler's next tokens: no log-probability is asked for, no grammar, and no
    noise of an observed text."""
    parameters = sampler.parameters
    if parameters.noise is not None and parameters.noise.observed:
        return False
    return parameters.logprobs is None and parameters.grammar is None and type(sampler) in (Sampler, ForcedSampler)


def native_sampler(sampler: Sampler) -> Any:
    """A native Sampler that shares the sampler's counts; its place in the answer is told with every call."""
    module, parameters = dispatch.require(), sampler.parameters
    options = module.SamplingOptions()
    options.temperature, options.top_k = parameters.temperature, min(parameters.top_k, LARGEST_TOP_K)
    options.top_p, options.min_p = parameters.top_p, parameters.min_p
    options.repetition_penalty = parameters.repetition_penalty
    options.presence_penalty, options.frequency_penalty = parameters.presence_penalty, parameters.frequency_penalty
    options.gumbel = parameters.noise is not None
    with np.errstate(over="ignore"):
        biases = [(token, float(np.float32(bias))) for token, bias in parameters.logit_bias.items()]
    return module.Sampler(
        options=options,
        source=(sampler.seed & MASK, sampler.stream & MASK),
        said=sampler.said,
        biases=biases,
        absent=sorted(sampler.absent.ids),
        forced=sampler.forced if isinstance(sampler, ForcedSampler) else ((), 0),
        vocabulary=sampler.vocabulary_size,
    )
