"""When a sequence's policies act, and their acting: on each layer when a prompt ends, then every `period` tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.cache.editing.apply import apply_edits
from thrifty.cache.policy import CachePolicy
from thrifty.cache.statistics import Stats
from thrifty.cache.view import LayerView

if TYPE_CHECKING:
    from thrifty.cache.slots.sequence_slots import SequenceSlots
    from thrifty.cache.watching.collector import Collector

NEVER = 1 << 62


class Schedule:
    """next: the committed length at which `after_decode` has something to do."""

    def __init__(self, policies: Sequence[CachePolicy]) -> None:
        self.next = NEVER
        self._policies = tuple(policies)
        self._due = [NEVER] * len(self._policies)

    def begin(self, length: int) -> None:
        """Count the periods of all policies from a sequence of `length` tokens on."""
        self._due = [_after(policy, length) if policy.watches_decode else NEVER for policy in self._policies]
        self.next = min(self._due, default=NEVER)

    def shorten(self, length: int) -> None:
        """The sequence went back to `length` tokens."""
        self._due = [min(due, _after(policy, length)) for due, policy in zip(self._due, self._policies, strict=True)]
        self.next = min(self._due, default=NEVER)

    def copy(self) -> Schedule:
        """The same dates, for a fork."""
        other = Schedule(self._policies)
        other._due, other.next = list(self._due), self.next
        return other

    def after_prefill(self, slots: SequenceSlots, collector: Collector, layer: int, n: int, earlier: int = 0) -> None:
        """The prompt, with n tokens that are not committed yet, is complete in a layer. earlier: the sequence's length
        when its last prompt ended, 0 where this is the first."""
        length = slots.length + n
        info = slots.model.layer(layer, length, length, earlier)
        for index, policy in enumerate(self._policies):
            if not policy.compresses:
                continue
            stats = _stats(slots, collector, layer, index)
            edits = policy.after_prefill(info, LayerView(info, slots.spans[layer]), stats)
            apply_edits(slots, collector, edits, (layer,))
        collector.forget(layer)
        collector.settle()

    def after_decode(self, slots: SequenceSlots, collector: Collector) -> None:
        """The policies that are due act on all of their layers."""
        layers = slots.policy_layers
        for index, policy in enumerate(self._policies):
            if slots.length < self._due[index]:
                continue
            self._due[index] = _after(policy, slots.length)
            infos = [slots.model.layer(layer, slots.length, slots.prompt) for layer in layers]
            views = [LayerView(info, slots.spans[info.index]) for info in infos]
            stats = [_stats(slots, collector, layer, index) for layer in layers]
            edits = policy.after_decode(views, stats)
            if edits:
                apply_edits(slots, collector, edits, layers)
        collector.settle()
        self.next = min(self._due, default=NEVER)


def _after(policy: CachePolicy, length: int) -> int:
    """When a policy acts next, behind `length` tokens."""
    return length + policy.interval - (length % policy.interval if policy.causal else 0)


def _stats(slots: SequenceSlots, collector: Collector, layer: int, policy: int) -> Stats:
    """What is known of a layer's sealed slots, with the notes of a policy by its place in the recipe."""
    return collector.stats(layer, slots.sealed_counts(layer), policy, slots.places(layer))
