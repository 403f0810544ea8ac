"""A prompt that is computed to be looked at, and forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.engine.prefill.pace import Pace
from thrifty.engine.prefill.prefill import ChunkedPrefill, LayerMajorPrefill
from thrifty.engine.prefill.prompt_rows import PromptRows
from thrifty.engine.prefill.rehearsal import RehearsedPrefill

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.admission.memory import EngineMemory
    from thrifty.engine.runner import Runner
    from thrifty.engine.running import Prefill


def watch_prompt(
    runner: Runner, memory: EngineMemory, tokens: Sequence[int], policy: CachePolicy, scored: int, chunk: int
) -> list[int]:
    """See `Engine.watch_prompt`. The peak is promised before anything is computed, and all of it is given back."""
    need = memory.request_bytes([policy], len(tokens), len(tokens))
    reservation = memory.cache.reserve("a prompt that is looked at", need)
    try:
        cache = memory.cache.create([policy], reservation=reservation, publishes=False)
    except BaseException:
        reservation.release()
        raise
    try:
        if cache.rehearses is not None:
            scored = min(scored, 1)  # its prefill has the last row's scores alone
        prefill = _prefill(runner, cache, tokens, scored, chunk)
        scores = prefill.advance()
        while scores is None:
            scores = prefill.advance()
        return [scores.best(row) for row in range(min(scored, len(tokens)))]
    finally:
        memory.cache.release(cache)


def _prefill(runner: Runner, cache: SequenceCache, tokens: Sequence[int], scored: int, chunk: int) -> Prefill:
    """Layer by layer; for a policy that rehearses the whole prompt, and then what it wants repeated."""
    prompt, pace = PromptRows(cache, tokens), Pace(0.0)
    if cache.rehearses is None:
        return LayerMajorPrefill(runner, cache, prompt, chunk, pace, scored)
    return RehearsedPrefill(
        runner, cache, prompt, chunk, pace, ChunkedPrefill(runner, cache, prompt, chunk, pace, lambda: None)
    )
