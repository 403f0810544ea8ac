"""Decoding without Python between two tokens: native code runs the plan, samples and appends for several steps.

Python is woken for what it must see: the end of a page or of an answer, a policy that is due, another thread that
waits. What native code does not do (drafts, logits or log-probabilities that are asked for, ropes that know the length)
is left to `engine.decode`, and so is every error: it finds out whose it is.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, Any

from thrifty.decoding.native_sampling import native_sampler, runs_natively
from thrifty.decoding.strategies.autoregressive import Autoregressive
from thrifty.engine.native_runner import NativeRunner, accumulators
from thrifty.engine.rotary_tables import BLOCK
from thrifty.formats.kv import PAGE
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.sequence import Sequence


class Continued:
    """A sequence as native code goes on with it: the native object, and the block of positions that it has turned."""

    def __init__(self, sequence: Sequence) -> None:
        ends = sorted(sequence.stopper.ends)
        self.native = dispatch.require().Continuation(native_sampler(sequence.sampler), ends)
        self.block = -1


class Ahead:
    """Runs batches for several steps. waiting: a native Waiting, how many threads want a turn of the engine."""

    def __init__(self, waiting: Any) -> None:
        self._waiting = waiting

    def run(self, runner: NativeRunner, sequences: Items[Sequence], together: bool) -> list[list[int]] | None:
        """The next tokens of each sequence, at least one, or None where this batch is not for native code alone.

        together: up to as many as nothing speaks against, else one each. Their rows are in the caches, not committed.
        Whatever it raises, uncommitted rows may be left.
        """
        plan = runner.plan
        if not sequences or plan.by_length or not all(map(_is_simple, sequences)):
            return None
        natives, count = [self._begin(plan, sequence) for sequence in sequences], len(sequences)
        sums = accumulators([_cache(sequence).accumulate_rows(1) for sequence in sequences])
        steps = min(map(_most, sequences)) if together and not sums else 1
        tokens = plan.decode(natives, steps, self._waiting, sums)
        return [tokens[place::count] for place in range(count)] if tokens else None

    def _begin(self, plan: Any, sequence: Sequence) -> Any:
        """The sequence's native object, ready for the next call; room for a row is there."""
        continued, cache, tokens = sequence.continued, _cache(sequence), sequence.tokens
        if continued is None:
            continued = sequence.continued = Continued(sequence)
        cache.reserve(1)
        position = len(tokens) - 1
        if position // BLOCK != continued.block:
            continued.block = position // BLOCK
            continued.native.turn(continued.block * BLOCK, plan.rotary.block(continued.block))
        continued.native.begin(cache.native, tokens[-1], position, sequence.sampler.position)
        return continued.native


def _is_simple(sequence: Sequence) -> bool:
    """Whether nothing but tokens is wanted of a sequence, by plain sampling."""
    return (
        type(sequence.strategy) is Autoregressive
        and not sequence.ticket.request.logits
        and runs_natively(sequence.sampler)
    )


def _most(sequence: Sequence) -> int:
    """Steps of a sequence until Python must see it."""
    cache, stopper, position = _cache(sequence), sequence.stopper, len(sequence.tokens) - 1
    if stopper.looks_for_text:
        return 1
    return min(
        stopper.maximum_tokens - stopper.count,
        cache.schedule.next - cache.length,
        PAGE - cache.tail.rows,
        sequence.covered - position,
        BLOCK - position % BLOCK,
    )


def _cache(sequence: Sequence) -> SequenceCache:
    assert sequence.cache is not None, "a decoding sequence has a cache"
    return sequence.cache
