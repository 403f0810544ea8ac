"""Teacher forcing through the real engine: a prompt, then given tokens one step at a time, each step timed
and looked at.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thrifty.engine.request import Request
from thrifty.errors import ThriftyError

if TYPE_CHECKING:
    from thrifty.arrays import Floats
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.engine import Engine

Tables = Sequence[Mapping[str, Any]]


class MeasurementError(ThriftyError):
    """A measurement would not mean what it says, so it is refused."""


@dataclass(frozen=True)
class Evidence:
    """What a step's attention read, over all layers and KV heads: slots in total, slots held as codes, tokens
    of which no slot is left (evicted or merged away). nbytes: bytes of the sequence's segments.
    """

    slots: int
    quantised: int
    missing: int
    nbytes: int

    @property
    def compressed(self) -> bool:
        """Whether anything that was read is not what the model computed."""
        return self.quantised > 0 or self.missing > 0


@dataclass(frozen=True)
class ForcedStep:
    """One step. seconds: wall time of it (of the whole prefill for the first). logits: [vocabulary] fp32,
    which predict the forced token of this step; None where they were not asked for. evidence: of the cache
    that the step read, where it was inspected; the first step's logits come from the prefill. held: bytes
    that the engine's ledger holds after it, transient ones left out.
    """

    index: int
    seconds: float
    logits: Floats | None
    evidence: Evidence | None
    held: int


def force(
    engine: Engine,
    prompt: Sequence[int],
    answer: Sequence[int],
    cache: Tables | None = None,
    *,
    logits: bool = False,
    inspect: Collection[int] = (),
) -> Generator[ForcedStep, None, None]:
    """Prefill `prompt` under the recipe's cache tables (None: the engine's), then feed `answer` token by
    token.

    inspect: the steps whose cache is looked at, which takes some milliseconds that are not counted as the
    step's. The prefix tree is left out, so every run computes its prompt. A run that is given up ends when the iterator
    is closed. Raises what the engine raises;
    MeasurementError where the engine ended early.
    """
    request = Request(prompt=prompt, forced=answer, cache=cache, logits=logits, share_prefix=False)
    before = time.perf_counter()
    handle = engine.submit(request)
    events = iter(handle)
    seen: Evidence | None = None
    try:
        for index in range(len(answer)):
            event = next(events, None)
            seconds = time.perf_counter() - before
            if event is None or event.token != answer[index]:
                given = "nothing" if event is None else f"token {event.token}"
                raise MeasurementError(f"step {index} of a forced run gave {given} instead of token {answer[index]}")
            yield ForcedStep(index, seconds, event.logits, seen, engine.usage().steady)
            held = engine.cache_of(handle) if index + 1 in inspect else None
            seen = None if held is None else evidence(held)
            before = time.perf_counter()
        for _ in events:
            pass
    finally:
        handle.cancel()


def evidence(cache: SequenceCache) -> Evidence:
    """Count what the next step of a sequence will read. Only layers that see every token can miss one: a
    sliding-window layer forgets by the model's own design.
    """
    slots = quantised = missing = 0
    for layer in cache.model.attention_layers:
        view = cache.view(layer)
        for head in range(cache.model.of(layer).kv_heads):
            held = cache.slots(layer, head)
            slots += held
            quantised += sum(stretch.stop - stretch.start for stretch in view.stretches(head) if stretch.quantised)
            if layer in cache.model.policy_layers:
                missing += cache.length - held
    return Evidence(slots, quantised, missing, cache.nbytes)
