"""Scores under prompt programs, beside those of whole prompts, by where the question stands.

Claims about them have the same controls as those about caches (see `controls`): random tokens must lose, the full
budget must hold, the newest tokens alone are shown. With the full budget a program does not run; so what it loses where
it leaves next to nothing out is shown, too.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import WINDOW, Control, Controlled
from thrifty.claims.harness.parts import ahead
from thrifty.claims.harness.statistics import Scores, advantage
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.drafting.models import LoadDraft, load_draft
from thrifty.engine.request import Request
from thrifty.evaluation.asking import nothing_compressed
from thrifty.evaluation.forcing import MeasurementError, Tables
from thrifty.evaluation.text import held_out
from thrifty.models import load

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.engine.request import Handle, Listener, Usage

Place = Literal["end", "last", "first"]
QUESTIONS: Mapping[Place, tuple[str, Mapping[str, Any]]] = {
    "end": ("recall", {"mode": "aware"}),
    "last": ("recall-asked", {"place": "last"}),
    "first": ("recall-asked", {"place": "first"}),
}
"""The task and its options by where the question stands. end: it ends the prompt, so that the last token is its own.
last, first: the prompt is the user's whole turn, to where the answer begins, the question behind the prose or before.
"""
DRAFTS: Mapping[str, str] = {"qwen2.5-coder-1.5b": "qwen2.5-coder-0.5b"}
NEAR_FULL = 0.98
"""The share of a prompt that is next to all of it."""


@dataclass(frozen=True)
class Draft:
    """The model that drafts for a claim's. told: which it is, in words."""

    name: str
    layers: int
    told: str
    load: LoadDraft


def draft_of(context: Context) -> Draft:
    """A smaller model with the same tokens where there is one, else the model itself: the best that a draft can be."""
    model = context.model
    if context.name in DRAFTS:
        name = DRAFTS[context.name]
        return Draft(name, len(load(name).config.layers), f"the draft model is {name}", load_draft)
    told = "the model drafts for itself, so that a draft knows all that one can: a smaller one would know less"
    return Draft(context.name, len(model.config.layers), told, lambda name, fits: model)


class Prompting:
    """A model's answers about texts of `length` tokens, one question each, as many as the budget has items.

    draft: the model that programs may draft with. place: where the question stands, unless a call says otherwise. Use
    as a context: it closes its engine.
    """

    def __init__(self, context: Context, length: int, draft: Draft | None = None, place: Place = "last") -> None:
        self.length, self.place = length, place
        self._context, self._draft = context, draft
        self._scores: dict[str, Scores] = {}

    @cached_property
    def engine(self) -> Engine:
        """Of the claim's model, without a prefix tree: every prompt is read anew."""
        return self._fresh()

    def _fresh(self) -> Engine:
        options: dict[str, Any] = {"prefill_slice_ms": 0}
        if self._draft is not None:
            options |= {"drafts": (self._draft.name,), "load_draft": self._draft.load}
        return self._context.fresh(self._context.model, **options)

    def __call__(
        self, programs: Tables, cache: Tables = (), *, place: Place | None = None, insist: bool = True
    ) -> Scores:
        """The scores under tables of programs and of cache techniques. insist: raise MeasurementError where programs
        claim to leave something out, and nothing was.
        """
        tables, asked = [*map(dict, programs), *map(dict, cache)], place or self.place
        key = json.dumps([asked, *tables], sort_keys=True)
        if key not in self._scores:
            self._context.ran[str(tables)] = None
            self._scores[key] = self._run(programs, list(cache), asked, insist)
        return self._scores[key]

    def seconds(self, programs: Tables, cache: Tables = (), length: int | None = None) -> float:
        """From a prompt of prose to its first token, all passes included. Models that draft are loaded before."""
        tokens = held_out(self._context.model.require_tokenizer(), length or self.length)
        before = time.perf_counter()
        self._first_token(tokens, programs, cache).cancel()
        return time.perf_counter() - before

    def peak(self, programs: Tables, cache: Tables = (), length: int | None = None) -> int:
        """Bytes of the ledger at their highest while one prompt of prose is read and a token chosen, weights and models
        that draft included.
        """
        tokens = held_out(self._context.model.require_tokenizer(), length or self.length)
        engine = self._fresh()
        try:
            self._first_token(tokens, programs, cache, engine).cancel()
            return engine.usage().peak
        finally:
            engine.close()

    def controlled(self, full: Scores, ours: Scores, table: Mapping[str, Any]) -> Controlled:
        """The controls. table: the program's."""
        capacity = int(table["capacity"])
        random = self([{"technique": "random-tokens", "capacity": capacity, "last": min(WINDOW, capacity // 2)}])
        newest = self([{"technique": "random-tokens", "capacity": capacity, "first": 0, "last": capacity}])
        controls = (
            Control(f"random tokens, {capacity}", "lose", advantage(random, full)),
            Control(f"the newest {capacity} alone", "shown", advantage(newest, full)),
            *self.whole(full, table),
        )
        return Controlled(controls, ahead("ahead of random tokens", ours, random))

    def whole(self, full: Scores, table: Mapping[str, Any]) -> tuple[Control, Control]:
        """The controls of the program's full budget, and of next to all of it."""
        every, most = ([dict(table) | {"keep": kept}] for kept in (1.0, NEAR_FULL))
        return (
            Control("the full budget", "hold", advantage(self(every, insist=False), full)),
            Control(f"{NEAR_FULL:.0%} of the prompt", "shown", advantage(self(most), full)),
        )

    def __enter__(self) -> Prompting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "engine" in self.__dict__:
            self.engine.close()
            del self.__dict__["engine"]

    def _first_token(
        self, tokens: Sequence[int], programs: Tables, cache: Tables, engine: Engine | None = None
    ) -> Handle:
        engine = self.engine if engine is None else engine
        sampling = SamplingParameters(max_tokens=2, ignore_eos=True)
        request = Request(prompt=tokens, sampling=sampling, programs=programs, cache=cache, share_prefix=False)
        handle = engine.submit(request)
        while handle.usage.generated_tokens == 0:
            engine.step()
        return handle

    def _run(self, programs: Tables, cache: Tables, place: Place, insist: bool) -> Scores:
        programmed, context = ProgrammedEngine(self.engine, programs), self._context
        under = _Under(context.model, context.name, budget=context.budget, seed=context.seed, say=context.say)
        under.__dict__["engine"] = cast("Engine", programmed)  # closed here, not there
        names = " → ".join(str(table["technique"]) for table in [*programs, *cache]) or "the whole prompt"
        context.say(f"answers, question at the {place}, {names}")
        task, options = QUESTIONS[place]
        insisting = bool(cache) and insist
        scores = under.task(
            task, cache, items=context.budget.items, length=self.length, insist=insisting, **dict(options)
        )
        if programs and insist and all(used.kept_tokens == used.prompt_tokens for used in programmed.used):
            raise MeasurementError(nothing_compressed(self.length, programs))
        return scores


class ProgrammedEngine:
    """An engine for tasks, whose requests have these programs. used: what each of them used."""

    def __init__(self, engine: Engine, programs: Tables) -> None:
        self.used: list[Usage] = []
        self._engine, self._programs = engine, [dict(table) for table in programs]

    def submit(self, request: Request, listener: Listener | None = None) -> Handle:
        """As the engine's."""
        own = replace(request, programs=self._programs, share_prefix=False)
        handle = self._engine.submit(own, listener)
        self.used.append(handle.usage)
        return handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class _Under(Context):
    """A context around an engine that another one owns. Its results are kept in memory alone: they are of programs."""


def share(length: int, part: int, least: int) -> int:
    """Tokens of a budget: one in `part` of a prompt, and `least` at least."""
    return max(least, math.floor(length / part))
