"""Decoding without Python between two tokens: native code runs the plan, samples and appends for several steps.

Python is woken for what it must see: the end of a page or of an answer, a policy that is due, another thread that
waits. What native code does not do (drafts, adapters, taps, steering, logits or log-probabilities that are asked for,
ropes that know the length) is left to `engine.decode`, and so is every error: it finds out whose it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from thrifty.decoding.native_sampling import runs_natively
from thrifty.decoding.strategies.autoregressive import Autoregressive
from thrifty.engine.continued import Continued
from thrifty.engine.plan.native_runner import NativeRunner, accumulators
from thrifty.engine.plan.rotary_tables import BLOCK
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.runner import Runner
    from thrifty.engine.running import Running


class Ahead:
    """Runs batches for several steps. waiting: a native Waiting, how many threads want a turn of the engine."""

    def __init__(self, waiting: Any) -> None:
        self._waiting = waiting
        self._error: Exception | None = None

    def takes(self, runner: Runner, sequences: Sequence[Running]) -> TypeGuard[NativeRunner]:
        """Whether the runner does these sequences in native code alone."""
        return isinstance(runner, NativeRunner) and not runner.plan.by_length and all(map(_is_simple, sequences))

    def begin(self, runner: NativeRunner, sequence: Running) -> None:
        """Get a sequence ready for `run`, with room for its next row. Raises BudgetError or StorageError."""
        continued, cache, position = sequence.continued, _cache(sequence), len(sequence.tokens) - 1 + sequence.shift
        if continued is None:
            continued = sequence.continued = Continued(sequence.sampler, sequence.stopper.ends)
        cache.reserve(1)
        if position // BLOCK != continued.block:
            block = position // BLOCK
            continued.native.turn(block * BLOCK, runner.plan.rotary.block(block))
            continued.block = block
        continued.native.begin(cache.native, sequence.tokens[-1], position, sequence.sampler.position)

    def run(self, runner: NativeRunner, sequences: Sequence[Running], together: bool) -> list[list[int]]:
        """The next tokens of each sequence, at least one; none at all where one of them has none to choose.

        together: up to as many as nothing speaks against, else one each. Their rows are in the caches, not committed.
        Whatever it raises, uncommitted rows may be left. An error behind the first step is raised by the next call: the
        tokens before it come first.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error
        count = len(sequences)
        natives = [sequence.continued.native for sequence in sequences if sequence.continued is not None]
        sums = accumulators([_cache(sequence).accumulate_rows(1) for sequence in sequences])
        steps = min(map(_most, sequences)) if together and not sums else 1
        tokens, self._error = runner.plan.decode(natives, steps, self._waiting, sums)
        return [tokens[place::count] for place in range(count)]


def _is_simple(sequence: Running) -> bool:
    """Whether nothing but tokens is wanted of a sequence, by plain sampling."""
    return (
        isinstance(sequence.strategy, Autoregressive)
        and not sequence.ticket.request.logits
        and sequence.extra is None
        and runs_natively(sequence.sampler)
    )


def _most(sequence: Running) -> int:
    """Steps of a sequence until Python must see it."""
    cache, stopper, position = _cache(sequence), sequence.stopper, len(sequence.tokens) - 1 + sequence.shift
    if stopper.looks_for_text or cache.states is not None:  # a state goes back by one step at most
        return 1
    return min(
        stopper.maximum_tokens - stopper.count,
        cache.schedule.next - cache.length,
        PAGE - cache.tail.rows,
        sequence.covered - sequence.computed,
        BLOCK - position % BLOCK,
    )


def _cache(sequence: Running) -> SequenceCache:
    assert sequence.cache is not None, "a decoding sequence has a cache"
    return sequence.cache
