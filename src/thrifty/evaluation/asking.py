"""Questions to a compressed context: what follows the prompt is fed after its cache was compressed.

Several questions to one context are forks of one prefill, which share what it left by reference and change nothing of
one another's results.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request
from thrifty.errors import BudgetError
from thrifty.evaluation.forcing import Evidence, MeasurementError, Tables, evidence

if TYPE_CHECKING:
    from thrifty.decoding.sampling import TokenLogprob
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
    return ask_each(engine, prompt, [question], limit, cache, stop=stop, insist=insist)[0]


def ask_each(
    engine: Engine,
    prompt: Sequence[int],
    questions: Sequence[Sequence[int]],
    limit: int,
    cache: Tables | None,
    *,
    stop: tuple[str, ...] = (),
    insist: bool = True,
) -> list[Reply]:
    """`ask`, of several questions that do not know of one another: the prompt is compressed once for all of them."""
    sampling = SamplingParameters(stop=stop)
    with branches(engine, prompt, questions, limit, cache, sampling) as branched:
        compressed = _watch(engine, prompt, branched[0], len(questions[0]), cache if insist else [])
        return [
            _reply(engine, branch, question, stop, compressed)
            for branch, question in zip(branched, questions, strict=True)
        ]


def _reply(engine: Engine, branch: Branch, question: Sequence[int], stop: tuple[str, ...], compressed: bool) -> Reply:
    tokens = branch.handle.result().token_ids[len(question) - branch.shared :]
    return reply(engine.model.require_tokenizer(), tokens, engine.probe().end_ids, stop, compressed)


def reply(
    tokenizer: Any, tokens: Sequence[int], ends: Collection[int], stop: tuple[str, ...], compressed: bool
) -> Reply:
    """What so many generated tokens say, up to a stop string. ends: ids of which the last token may be one."""
    kept = tuple(tokens[:-1] if tokens and tokens[-1] in ends else tokens)
    text = tokenizer.decode(kept)
    places = [place for place in map(text.find, stop) if place >= 0]
    return Reply(kept, text[: min(places)] if places else text, compressed)


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
    """The likelihood of each option after `prompt`, compressed once, and `lead`, fed after it (empty: the prefill,
    which attends exactly, predicts an option's first token).

    insist: raise MeasurementError where the tables claim to compress and nothing was.
    """
    sampling = SamplingParameters(logprobs=1)
    with branches(engine, prompt, [[*lead, *option] for option in options], 0, cache, sampling) as branched:
        compressed = _watch(engine, prompt, branched[0], len(lead), cache if insist else [])
        rows = [(*branch.before, *branch.handle.result().logprobs)[len(lead) :] for branch in branched]
    return [
        Likelihood(
            sum(token.logprob for token in row), all(token.token == token.top[0][0] for token in row), compressed
        )
        for row in rows
    ]


@dataclass(frozen=True)
class Branch:
    """One continuation of a prompt. shared: how many of its first tokens came before the fork, 0 or 1. before: what
    the model thought of these, where that was asked for.
    """

    handle: Handle
    shared: int = 0
    before: tuple[TokenLogprob, ...] = ()


@contextmanager
def branches(
    engine: Engine,
    prompt: Sequence[int],
    fed: Sequence[Sequence[int]],
    free: int,
    cache: Tables | None,
    sampling: SamplingParameters,
) -> Iterator[list[Branch]]:
    """Runs that feed different tokens (each at least one) after one prompt, then choose `free` more.

    Those whose first token is the same share one prefill: they are forked where it has been chosen and nothing fed yet.
    One that the budget has no room for beside the others prefills on its own. What is unfinished ends with the context.
    """
    made: dict[int, Branch] = {}
    try:
        for first in dict.fromkeys(row[0] for row in fed):
            places = [place for place, row in enumerate(fed) if row[0] == first]
            if len(places) > 1:
                made |= _forked(engine, prompt, {place: fed[place] for place in places}, free, cache, sampling)
        for place, row in enumerate(fed):
            if place not in made:
                made[place] = Branch(engine.submit(_request(prompt, row, free, cache, sampling)))
        yield [made[place] for place in range(len(fed))]
    finally:
        for branch in made.values():
            branch.handle.cancel()


def _forked(
    engine: Engine,
    prompt: Sequence[int],
    fed: dict[int, Sequence[int]],
    free: int,
    cache: Tables | None,
    sampling: SamplingParameters,
) -> dict[int, Branch]:
    """The branches that there is room for, by the places of what they are fed. Their first token is the same."""
    made: dict[int, Branch] = {}
    first = next(iter(fed.values()))[:1]
    root = engine.submit(_request(prompt, first, 1, cache, sampling))
    try:
        next(iter(root))
        before = tuple(root.samples[0].logprobs)
        for place, row in fed.items():
            if len(row) == 1 and not free:
                continue  # nothing follows the token that is shared
            own = sampling if len(row) > 1 else SamplingParameters(stop=sampling.stop, max_tokens=free)
            made[place] = Branch(root.fork(own, forced=row[1:], free=free if len(row) > 1 else 0), 1, before)
    except BudgetError:
        pass  # the rest runs alone, with the same result
    except BaseException:
        for branch in made.values():
            branch.handle.cancel()
        raise
    finally:
        root.cancel()
    return made


def _request(
    prompt: Sequence[int], forced: Sequence[int], free: int, cache: Tables | None, sampling: SamplingParameters
) -> Request:
    return Request(prompt=prompt, forced=forced, free=free, cache=cache, sampling=sampling, share_prefix=False)


def _watch(engine: Engine, prompt: Sequence[int], branch: Branch, fed: int, cache: Tables | None) -> bool:
    """Run a branch to its end; whether its cache was compressed once what is fed after the prompt was in."""
    seen: Evidence | None = None
    for place, _ in enumerate(branch.handle, 1 + branch.shared):
        if seen is None and place >= fed:
            held = engine.cache_of(branch.handle)
            seen = None if held is None else evidence(held)
            if compresses(cache) and seen is not None and not seen.compressed:
                raise MeasurementError(nothing_compressed(len(prompt), cache))
    return seen is not None and seen.compressed
