"""A prompt that is computed to be looked at, and forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.engine.prefill.pace import Pace
from thrifty.engine.prefill.prefill import LayerMajorPrefill
from thrifty.engine.prefill.prompt_rows import PromptRows

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy
    from thrifty.engine.admission.memory import EngineMemory
    from thrifty.engine.runner import Runner


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
        prefill = LayerMajorPrefill(runner, cache, PromptRows(cache, tokens), chunk, Pace(0.0), scored)
        scores = prefill.advance()
        while scores is None:
            scores = prefill.advance()
        return [scores.best(row) for row in range(min(scored, len(tokens)))]
    finally:
        memory.cache.release(cache)
