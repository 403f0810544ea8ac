"""Prefill of a prompt that programs look at first: their passes piece by piece, then the prefill of what they left."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.decoding.scores import Scores
from thrifty.engine.prefill.lookahead import LookaheadPrefill
from thrifty.engine.prefill.pace import Pace
from thrifty.engine.prefill.prefill import LayerMajorPrefill, prefill_of
from thrifty.engine.prefill.prompt_rows import PromptRows
from thrifty.engine.runner import CHUNK, Runner
from thrifty.engine.running import Prefill, Running
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.admission.memory import EngineMemory
    from thrifty.engine.prompt.observer import Observer
    from thrifty.engine.prompt.program import Drafts, Read, Work
    from thrifty.engine.prompt.reading import PromptReading


class ProgrammedPrefill(Prefill):
    """The programs of a sequence, then its prefill; see `Prefill`."""

    def __init__(
        self,
        runner: Runner,
        sequence: Running,
        reading: PromptReading,
        chunk: int,
        memory: EngineMemory,
        pace: Pace,
    ) -> None:
        """chunk: tokens, a multiple of 128."""
        self._runner, self._sequence, self._chunk = runner, sequence, chunk
        self._memory, self._pace = memory, pace
        self._passes = Passes(runner, sequence, chunk, memory, pace, reading.drafts)
        self._work = reading.run(sequence.tokens, self._passes, sequence.stopper.maximum_tokens)
        self._prefill: Prefill | None = None
        sequence.answer.mark_admitted(0)

    def advance(self, sliced: bool = False) -> Scores | None:
        """The next piece of the programs' work, then of the prefill."""
        if self._prefill is not None:
            return self._prefill.advance(sliced)
        self._passes.sliced = sliced
        try:
            next(self._work)
        except StopIteration as end:
            self._prefill = self._begin(end.value)
        return None

    def close(self) -> None:
        """End the programs' work."""
        self._work.close()

    def _begin(self, read: Read) -> Prefill:
        sequence = self._sequence
        cache = self._memory.open_read(sequence, read)
        sequence.answer.usage.cached_tokens = cache.hit
        if read.policy is not None:
            return LookaheadPrefill(self._runner, sequence, cache, read.ahead, self._chunk, self._pace)
        return prefill_of(self._runner, sequence, cache, self._chunk, self._memory.publish, self._pace)


class Passes:
    """A `Forward` for the programs of one sequence. sliced: whether others decode, so that pieces are to be short."""

    def __init__(
        self, runner: Runner, sequence: Running, chunk: int, memory: EngineMemory, pace: Pace, drafts: Drafts
    ) -> None:
        self.sliced = False
        self._runner, self._sequence, self._chunk = runner, sequence, chunk
        self._memory, self._pace, self._drafts = memory, pace, drafts

    def observe(self, tokens: Sequence[int], observer: Observer, layers: int) -> Work[None]:
        """See Forward."""
        cache = self._memory.open_pass(self._sequence, observer, tokens)
        prompt = PromptRows(cache, tokens, self._sequence.extra)
        yield from self._layers(self._runner, cache, prompt, self._chunk, self._pace, layers)

    def observe_draft(self, name: str, tokens: Sequence[int], observer: Observer) -> Work[None]:
        """See Forward."""
        runner, cache = self._drafts[name].open_pass(observer)
        try:
            prompt = PromptRows(cache, tokens)
            yield from self._layers(runner, cache, prompt, CHUNK, self._pace.anew(), runner.layers)
        finally:
            cache.free()

    def draft(self, name: str, tokens: Sequence[int], count: int) -> Work[tuple[int, ...]]:
        """See Forward. The draft model's context bounds it too."""
        model, drafted = self._drafts[name], list[int]()
        most = min(count, model.facts.context - len(tokens))
        with contextlib.closing(model.open()) as sequence:
            while not sequence.catch_up(tokens):
                yield
            following = sequence.follow(tokens)
            while following:
                scores = model.run([(sequence, following)])
                token = scores.best(len(following) - 1)
                if token < 0:
                    raise PromptError(f"the draft model {name!r} has logits that are no numbers: check its weights")
                if token in model.facts.absent.ids:
                    break
                drafted.append(token)
                following = () if len(drafted) >= most or token in model.facts.end_ids else (token,)
                yield
        return tuple(drafted)

    def _layers(
        self, runner: Runner, cache: SequenceCache, prompt: PromptRows, chunk: int, pace: Pace, layers: int
    ) -> Work[None]:
        """The first layers over a prompt, one after the other."""
        prefill = LayerMajorPrefill(runner, cache, prompt, chunk, pace)
        while prefill.piece(self.sliced) < layers:
            yield
