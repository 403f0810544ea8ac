"""Losses on prose that follows a compressed prompt, token by token; the passage is the tokens' cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from thrifty.claims.harness.scores.keys import keyed, unchecked
from thrifty.claims.harness.sharing import shared
from thrifty.claims.harness.statistics import Scores
from thrifty.errors import PromptError
from thrifty.evaluation.asking import compresses, nothing_compressed
from thrifty.evaluation.batched_runs import run_batched
from thrifty.evaluation.forcing import MeasurementError, Tables, force
from thrifty.evaluation.quality import Baseline, Passage, TokenScores, log_probabilities
from thrifty.evaluation.text import prose

if TYPE_CHECKING:
    from thrifty.claims.harness.state import State
    from thrifty.engine.engine import Engine

Measure = Literal["nll", "kl", "right"]
SCORED = 256  # tokens a passage
DIGITS = 6
ROOM = 4 * 10**9  # bytes of baselines' predictions on disk


@dataclass(frozen=True)
class Cut:
    """A passage and where its scored tokens begin in the prose."""

    name: str
    passage: Passage


def cuts(tokenizer: Any, context: int, prefix: int, count: int, seed: int, scored: int = SCORED) -> list[Cut]:
    """`count` passages of the judged half: `prefix` tokens, then `scored` ones that no other passage scores. Fewer
    where the prose has no more. seed: which ones, and in which order.

    Raises PromptError where the context or the prose does not hold one.
    """
    if prefix + scored + 2 > context:
        raise PromptError(
            f"a passage of {prefix} + {scored} tokens needs a context of {prefix + scored + 2}; this one holds "
            f"{context}"
        )
    ids = tokenizer.encode(prose("judged"))
    start_ids = ids[:1] if tokenizer.encode("") == ids[:1] else []
    body = ids[len(start_ids) :]
    if prefix + scored > len(body):
        raise PromptError(
            f"the judged prose has {len(body)} tokens, so that a prompt of {prefix} would hold what is scored after "
            f"it; use at most {len(body) - scored}"
        )
    starts = np.arange(0, len(body) - scored, scored)
    chosen = np.random.default_rng(seed).permutation(starts)[:count].tolist()
    around = body * (2 + prefix // len(body))  # a prefix that begins before the text comes from its end
    made = []
    for start in chosen:
        place = start + len(around) - len(body)
        prompt = [*start_ids, *around[place - prefix + len(start_ids) : place]]
        made.append(Cut(f"passage {start}", Passage(tuple(prompt), tuple(around[place : place + scored + 1]))))
    return made


class Passages:
    """Runs passages of one engine; keeps the uncompressed predictions of as many as there is room for."""

    def __init__(self, engine: Engine, state: State) -> None:
        self._engine, self._state = engine, state
        self._baselines: dict[tuple[int, ...], Baseline] = {}

    def losses(self, chosen: Sequence[Cut], cache: Tables, measure: Measure, *, insist: bool = True) -> Scores:
        """One figure a token: `nll` and `kl` (from the full cache) in nats, `right` whether the first choice came."""
        if measure == "kl" and not compresses(cache):
            return self._scores([[0.0] * (len(cut.passage.answer) - 1) for cut in chosen], chosen, measure)
        kind = "kl" if measure == "kl" else "nll"
        keys = [self._key(cut, cache, kind, insist) for cut in chosen]
        missing = [place for place, key in enumerate(keys) if not self._state.has(key)]
        jobs = [
            partial(self._run, passage=chosen[place].passage, cache=cache, kind=kind, insist=insist)
            for place in missing
        ]
        for number, figures in run_batched(self._engine, jobs):
            self._state.once(keys[missing[number]], lambda figures=figures: figures)  # type: ignore[misc]
        return self._scores([self._state.once(key, dict)[measure] for key in keys], chosen, measure)

    def _scores(self, losses: Sequence[list[float]], chosen: Sequence[Cut], measure: Measure) -> Scores:
        values = [value for own in losses for value in own]
        clusters = [cut.name for cut, own in zip(chosen, losses, strict=True) for _ in own]
        return Scores(tuple(values), tuple(clusters), higher=measure == "right", bounded=measure == "right")

    def most(self, count: int, scored: int = SCORED) -> int:
        """How many passages of `count` have room for their baselines, which `kl` needs."""
        nbytes = 4 * self._engine.model.config.vocabulary_size * scored
        return max(1, min(count, ROOM // nbytes))

    def _key(self, cut: Cut, cache: Tables, kind: str, insist: bool) -> list[Any]:
        lengths = len(cut.passage.prompt), len(cut.passage.answer)
        return ["passage", kind, cut.name, *lengths, keyed(cache, self._engine.model), *unchecked(insist)]

    def _run(self, engine: Engine, passage: Passage, cache: Tables, kind: str, insist: bool) -> dict[str, list[float]]:
        reference = iter(self._baseline(engine, passage).rows()) if kind == "kl" else None
        scores, nll, right = TokenScores(), [], []
        for target, logits in _predictions(engine, passage, cache, insist):
            nll.append(-float(log_probabilities(logits)[target]))
            right.append(float(int(logits.argmax()) == target))
            if reference is not None:
                scores.add(next(reference), logits, target)
        figures = {"nll": nll, "right": right} | ({"kl": scores.kl} if kind == "kl" else {})
        return {name: [round(value, DIGITS) for value in values] for name, values in figures.items()}

    def _baseline(self, engine: Engine, passage: Passage) -> Baseline:
        key = (*passage.prompt, *passage.answer)
        if key not in self._baselines:
            self._baselines[key] = Baseline.measure(engine, passage)
        return self._baselines[key]

    def close(self) -> None:
        """Delete the baselines."""
        for baseline in self._baselines.values():
            baseline.close()
        self._baselines.clear()


def _predictions(engine: Engine, passage: Passage, cache: Tables, insist: bool) -> Iterator[tuple[int, Any]]:
    """(the token that came, logits fp32 [vocabulary]) of every scored token."""
    steps = force(shared(engine), passage.prompt, passage.answer, cache, logits=True, inspect=(1,))
    with closing(steps):
        for step in steps:
            if step.index == 1 and insist and compresses(cache) and step.evidence and not step.evidence.compressed:
                raise MeasurementError(nothing_compressed(len(passage.prompt), cache))
            if step.index > 0:
                assert step.logits is not None, "the run asked for logits"
                yield passage.answer[step.index], step.logits
