"""Questions to a compressed context: what follows the prompt is fed after its cache was compressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.decoding.sampling import SamplingParameters
from thrifty.engine.request import Request
from thrifty.evaluation.forcing import Evidence, MeasurementError, Tables, evidence

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.engine.request import Handle


@dataclass(frozen=True)
class Reply:
    """What a model said. tokens: without the one that ended the text of its turn. text: up to a stop string.
    compressed: whether it read anything that was.
    """

    tokens: tuple[int, ...]
    text: str
    compressed: bool


def compresses(cache: Tables | None) -> bool:
    """Whether cache tables claim to hold less than everything in full precision."""
    return any(table.get("technique") != "full" for table in cache or ())


def nothing_compressed(prompt: int, cache: Tables | None) -> str:
    """The message where a recipe left a prompt of so many tokens as it was."""
    return (
        f"nothing of a prompt of {prompt} tokens was compressed under {[dict(table) for table in cache or ()]}, so "
        "there is nothing to score. Use a larger --length, or a smaller budget in the recipe."
    )


def ask(
    engine: Engine,
    prompt: Sequence[int],
    question: Sequence[int],
    limit: int,
    cache: Tables | None,
    *,
    stop: tuple[str, ...] = (),
    insist: bool = True,
) -> Reply:
    """Compress `prompt`, feed `question` (at least one token), then let the model say up to `limit` tokens, greedily.

    So every token it says has read the compressed cache: an answer's first token would otherwise come from the prefill,
    which attends exactly. The prefix tree is left out. insist: raise MeasurementError where the tables claim to
    compress and nothing was. Raises what the engine raises.
    """
    request = Request(
        prompt=prompt,
        forced=question,
        free=limit,
        cache=cache,
        sampling=SamplingParameters(stop=stop),
        share_prefix=False,
    )
    handle = engine.submit(request)
    compressed = _watch(engine, handle, len(question), cache if insist else [])
    tokens = handle.samples[0].token_ids[len(question) :]
    if tokens and tokens[-1] in engine.intake.end_ids:
        tokens = tokens[:-1]
    text = engine.model.tokenizer.decode(tokens)
    places = [place for place in map(text.find, stop) if place >= 0]
    return Reply(tuple(tokens), text[: min(places)] if places else text, compressed)


@dataclass(frozen=True)
class Likelihood:
    """Of given tokens: the sum of their natural-log probabilities, and whether each was the model's first choice.
    compressed: whether they read anything that was.
    """

    total: float
    greedy: bool
    compressed: bool


def likelihoods(
    engine: Engine,
    prompt: Sequence[int],
    lead: Sequence[int],
    options: Sequence[Sequence[int]],
    cache: Tables | None,
    *,
    insist: bool = True,
) -> list[Likelihood]:
    """The likelihood of each option after `prompt`, compressed, and `lead`, fed after it (empty: the prefill, which
    attends exactly, predicts an option's first token).

    insist: raise MeasurementError where the tables claim to compress and nothing was.
    """
    sampling = SamplingParameters(logprobs=1)
    handles = []
    try:
        for option in options:
            forced = [*lead, *option]
            request = Request(prompt=prompt, forced=forced, cache=cache, sampling=sampling, share_prefix=False)
            handles.append(engine.submit(request))
        compressed = _watch(engine, handles[0], len(lead), cache if insist else [])
        found = [handle.result().logprobs[len(lead) :] for handle in handles]
    finally:
        for handle in handles:
            handle.cancel()
    return [
        Likelihood(sum(one.logprob for one in row), all(one.token == one.top[0][0] for one in row), compressed)
        for row in found
    ]


def _watch(engine: Engine, handle: Handle, fed: int, cache: Tables | None) -> bool:
    """Run a request to its end; whether its cache was compressed once what is fed after the prompt was in."""
    seen: Evidence | None = None
    for place, _ in enumerate(handle, 1):
        if seen is None and place >= fed:
            held = engine.cache_of(handle)
            seen = None if held is None else evidence(held)
            if compresses(cache) and seen is not None and not seen.compressed:
                handle.cancel()
                raise MeasurementError(nothing_compressed(len(handle.request.prompt), cache))
    return seen is not None and seen.compressed
