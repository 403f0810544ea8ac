"""What serving costs by batch: how fast sequences decode together, each with a compressed prompt of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from thrifty.engine.request import Request
from thrifty.errors import PromptError
from thrifty.evaluation.forcing import MeasurementError, Tables
from thrifty.evaluation.measuring.noise import LIMIT, listening
from thrifty.evaluation.text import held_out

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.engine.request import Handle

STEPS = 32
MOST = 32  # sequences that an engine decodes together
SLACK = 8
"""Steps that reading a prompt takes beyond one for each of its layers and chunks."""
CHUNK = 128


@dataclass(frozen=True)
class ServedRate:
    """rate: tokens a second of all sequences together. prompt: tokens of each. cache_bytes: of all their caches at the
    end. others: the share of the processors that other processes took. seconds: of all, prompts included.
    """

    batch: int
    prompt: int
    rate: float
    cache_bytes: int
    others: float
    seconds: float

    @property
    def void(self) -> bool:
        """Whether other work disturbed it, so that it decides nothing."""
        return self.others > LIMIT

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ServedRate:
        """What `as_dict` made."""
        return cls(**values)


def served_rate(engine: Engine, cache: Tables, batch: int, prompt: int, steps: int = STEPS) -> ServedRate:
    """Decode `batch` sequences together for `steps` steps, each after its own prompt of `prompt` tokens of prose.

    engine: one that reads prompts in whole chunks, whoever waits, so that the first sequences wait for the last prompt
    and not the other way round. Raises PromptError where the context does not hold it, MeasurementError where a
    sequence ended before all of them decoded.
    """
    if batch > MOST:
        raise PromptError(f"a batch of {batch} does not decode together; use at most {MOST}")
    limit = engine.probe().context
    answer = steps + batch * _steps_beside(engine, prompt)
    if prompt + answer > limit:
        raise PromptError(
            f"decoding {batch} sequences after {prompt} tokens is measured on up to {prompt + answer} tokens; this "
            f"context holds {limit}: use at most --length {max(1, limit - answer)}, or smaller --batches"
        )
    began = time.perf_counter()
    handles: list[Handle] = []
    try:
        for place in range(batch):
            handles.append(_begun(engine, cache, prompt, answer, place))
        with listening() as noise:
            produced, seconds = _timed(engine, handles, steps)
        held = sum(0 if (own := engine.cache_of(handle)) is None else own.nbytes for handle in handles)
    finally:
        for handle in handles:
            handle.cancel()
    return ServedRate(batch, prompt, produced / seconds, held, noise.others, time.perf_counter() - began)


def _begun(engine: Engine, cache: Tables, prompt: int, answer: int, place: int) -> Handle:
    """A sequence that has its first token."""
    tokens = held_out(engine.model.require_tokenizer(), prompt + answer, place)
    request = Request(prompt=tokens[:prompt], forced=tokens[prompt:], cache=cache, share_prefix=False)
    handle = engine.submit(request)
    while not handle.samples[0].token_ids:
        if handle.finished:
            handle.result()
            raise MeasurementError("a sequence ended before its first token")
        engine.step()
    return handle


def _timed(engine: Engine, handles: Sequence[Handle], steps: int) -> tuple[int, float]:
    """(tokens of all sequences, seconds) of so many steps."""
    before = sum(len(handle.samples[0].token_ids) for handle in handles)
    start = time.perf_counter()
    for _ in range(steps):
        engine.step()
    seconds = time.perf_counter() - start
    produced = sum(len(handle.samples[0].token_ids) for handle in handles) - before
    if produced != steps * len(handles):
        raise MeasurementError(
            f"{len(handles)} sequences gave {produced} tokens in {steps} steps: some ended before all of them decoded"
        )
    return produced, seconds


def _steps_beside(engine: Engine, prompt: int) -> int:
    """The most steps that others take while a prompt is read: a step a layer, or a step a chunk, or, where a policy
    rehearses, as many again.
    """
    return 2 * (engine.probe().cache_model.layers + -(-prompt // CHUNK)) + SLACK
