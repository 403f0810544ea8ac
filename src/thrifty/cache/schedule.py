"""When a sequence's policies act, and their acting: on each layer when a prompt ends, then every `period` tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.cache.editing.apply import carry_out
from thrifty.cache.policy import CachePolicy
from thrifty.cache.statistics import Stats
from thrifty.cache.view import LayerView

if TYPE_CHECKING:
    from thrifty.cache.sequence_prompt import SequencePrompt

NEVER = 1 << 62


class Schedule:
    """next: the committed length at which `after_decode` has something to do."""

    def __init__(self, policies: Sequence[CachePolicy]) -> None:
        self.next = NEVER
        self._policies = tuple(policies)
        self._due = [NEVER] * len(self._policies)

    def begin(self, length: int) -> None:
        """Count the periods of all policies from a sequence of `length` tokens on."""
        self._due = [length + one.period if one.watches_decode else NEVER for one in self._policies]
        self.next = min(self._due, default=NEVER)

    def shorten(self, length: int) -> None:
        """The sequence went back to `length` tokens."""
        self._due = [min(due, length + one.period) for due, one in zip(self._due, self._policies, strict=True)]
        self.next = min(self._due, default=NEVER)

    def copy(self) -> Schedule:
        """The same dates, for a fork."""
        other = Schedule(self._policies)
        other._due, other.next = list(self._due), self.next
        return other

    def after_prefill(self, sequence: SequencePrompt, layer: int, n: int) -> None:
        """The prompt, with n tokens that are not committed yet, is complete in a layer."""
        length = sequence.length + n
        info = sequence.model.layer(layer, length, length)
        for index, policy in enumerate(self._policies):
            if not policy.compresses:
                continue
            stats = _stats(sequence, layer, index)
            edits = policy.after_prefill(info, LayerView(info, sequence.spans[layer]), stats)
            carry_out(sequence, edits, (layer,))
        sequence.collector.forget(layer)
        sequence.collector.settle()

    def after_decode(self, sequence: SequencePrompt) -> None:
        """The policies that are due act on all global layers."""
        layers = sequence.policy_layers
        for index, policy in enumerate(self._policies):
            if sequence.length < self._due[index]:
                continue
            self._due[index] = sequence.length + policy.period
            views = [sequence.view(layer) for layer in layers]
            stats = [_stats(sequence, layer, index) for layer in layers]
            edits = policy.after_decode(views, stats)
            if edits:
                carry_out(sequence, edits, layers)
        sequence.collector.settle()
        self.next = min(self._due, default=NEVER)


def _stats(sequence: SequencePrompt, layer: int, policy: int) -> Stats:
    """What is known of a layer's sealed slots, with the notes of a policy by its place in the recipe."""
    return sequence.collector.stats(layer, sequence.sealed_counts(layer), policy, sequence.places(layer))
