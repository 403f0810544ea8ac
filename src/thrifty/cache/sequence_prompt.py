"""The prompt of one sequence where a policy changes it: computed layer by layer, each compressed before the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakSet

from thrifty.arrays import Floats
from thrifty.cache.composition import layer_major, page_selection, wanted
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.schedule import Schedule
from thrifty.cache.slots.builder import release_all
from thrifty.cache.slots.sealing import drop_before, keep_window
from thrifty.cache.slots.sequence_slots import SequenceSlots
from thrifty.cache.slots.span import Span
from thrifty.cache.slots.states import RecurrentStates
from thrifty.cache.statistics import Statistics
from thrifty.cache.view import LayerView
from thrifty.cache.watching.collector import Collector
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from thrifty.cache.slots.tiers import Tiers
    from thrifty.storage.ledger import Reservation


class SequencePrompt(SequenceSlots):
    """layer_major: True where a policy changes the prompt, so that prefill must go layer by layer. open_state: the
    recurrent layer that such a prefill is in. statistics: what is collected for the policies (and for the tree, where
    `Cache.create` was told to).
    """

    def __init__(
        self,
        tiers: Tiers,
        model: ModelInfo,
        policies: Sequence[CachePolicy] = (),
        *,
        reservation: Reservation | None = None,
        collect: Statistics | None = None,
        siblings: WeakSet[SequenceSlots] | None = None,
    ) -> None:
        """reservation: promised bytes to draw from; it is released by `free`. collect: statistics beyond those that the
        policies want. siblings: see `SequenceSlots`.
        """
        self.policies = tuple(policies)
        self.hit = 0
        self.layer_major = layer_major(self.policies)
        self.statistics = wanted(self.policies, model) | (collect or Statistics())
        self.collector = Collector(self.statistics, model, tiers.ledger, reservation)
        self.schedule = Schedule(self.policies)
        self.open_state: int | None = None
        self._sealed: dict[int, int] = {}
        selection = page_selection(self.policies, model)
        super().__init__(
            tiers, model, reservation, siblings, selection
        )  # last: from here on it frees itself when it is dropped

    def view(self, layer: int) -> LayerView:
        """A layer's sealed slots as a policy sees them."""
        return LayerView(self.model.layer(layer, self.length, self.prompt), self.spans[layer])

    # --- layer-major prefill -------------------------------------------------------------------------

    def begin_layer(self, layer: int, n: int) -> None:
        """Layer-major prefill: take full-precision scratch for n new rows of one layer, and for those that a prefix
        hit brought: policies find a prompt in one piece, however much of it was shared.

        Raises BudgetError or StorageError, with nothing changed.
        """
        still = self.open_state if self.open_rows.scratch is None else self.open_rows.scratch.layer
        if still is not None:
            raise PromptError(f"layer {still} is still open: seal it before layer {layer} begins")
        if not self._sealed:
            self.seal_tail()
            self.tail.close()
            self.collector.prefilling = True
        if layer in self.model.state_layers:
            self.open_state = layer
            return
        prefix = self._prefix(layer)
        scratch = self.open_rows.begin_scratch(layer, n, self.length, prefix)
        if not prefix:
            self.native_view.open_page(layer, scratch)
            return
        self.spans.replace(layer, ())
        release_all(prefix)
        self.native_view.rebuild(layer)

    def observe(self, layer: int, queries: Floats | None, column_sums: list[Floats] | None = None) -> None:
        """Native layer-major prefill: hand over what `attend` would have collected, before `seal_layer`.

        queries: the newest rows [w, heads, head_dim] fp32 rotated, w ≥ `statistics.queries` or all there are.
        column_sums: [group, places] a KV head.
        """
        if queries is not None:
            self.collector.add_queries(layer, queries)
        if column_sums is not None:
            self.collector.add_sums(layer, column_sums)

    def seal_layer(self, layer: int) -> None:
        """Layer-major prefill: run the policies' after_prefill in order, store the result, give the scratch back.

        The scratch itself becomes the segment where no policy changes anything.
        """
        if self.states is not None and layer in self.model.state_layers:
            self._seal_state(self.states, layer)
            return
        shared = self.open_rows.committed(layer)
        segment = self.open_rows.end_scratch(layer)
        n = self._sealed[layer] = segment.tokens - shared
        self.spans.add(layer, Span(segment, segment.tokens))
        window = self.model.windows[layer]
        if window is not None:
            unseen = n - window + 1
            keep_window(self.spans, self.builder, layer, n, unseen)
            drop_before(self.spans, self.native_view, layer, self.length + unseen)
        else:
            self.schedule.after_prefill(self, self.collector, layer, n)
        self.native_view.rebuild(layer)

    def _seal_state(self, states: RecurrentStates, layer: int) -> None:
        """A recurrent layer has had its prompt: its state stays, whatever happens to the slots of later layers."""
        if self.open_state != layer:
            raise PromptError(f"layer {layer} was not begun: call begin_layer first")
        self._sealed[layer] = states.rows(layer, self.native_view.view)
        states.commit_layer(layer, self.native_view.view)
        self.open_state = None

    def _prefix(self, layer: int) -> Sequence[Span]:
        """The pages of a layer that a prefix hit brought, before policies see them. (A windowed layer, which they never
        see, keeps its pages as they are.)"""
        untouched = not self.prompt and self.length == self.hit
        return self.spans[layer] if untouched and self.model.windows[layer] is None else ()

    @property
    def _between_layers(self) -> bool:
        """Whether a layer-major prefill has begun and is not committed."""
        return self.open_rows.scratch is not None or self.open_state is not None or bool(self._sealed)

    def _commit_prompt(self, n: int) -> None:
        missing = [layer for layer in range(self.model.layers) if self._sealed.get(layer) != n]
        if missing or self.open_rows.scratch is not None or self.open_state is not None:
            raise PromptError(f"commit({n}): layers {missing[:8]} are not sealed with {n} rows")
        self._sealed = {}
        self.open_rows.pending = {}
        self.length += n
        self.prompt = self.length
        self.collector.prefilling = False
        self.native_view.drop()
        self.schedule.begin(self.length)
