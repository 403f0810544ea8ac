"""The prompt of one sequence where a policy changes it: computed layer by layer, each compressed before the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakSet

from thrifty.arrays import Floats
from thrifty.cache.composition import layer_major, offloading, page_selection, wanted
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.prompt_pages import PromptPages, StoredPrefix
from thrifty.cache.schedule import Schedule
from thrifty.cache.slots.builder import release_all
from thrifty.cache.slots.open_rows import Scratch
from thrifty.cache.slots.sealing import drop_before, keep_window, reopen
from thrifty.cache.slots.sequence_slots import SequenceSlots
from thrifty.cache.slots.span import Span
from thrifty.cache.slots.states import RecurrentStates
from thrifty.cache.statistics import Statistics
from thrifty.cache.view import LayerView
from thrifty.cache.watching.collector import Collector
from thrifty.cache.watching.sums import Accumulator
from thrifty.errors import PromptError
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.cache.slots.tiers import Tiers
    from thrifty.storage.ledger import Reservation


class SequencePrompt(SequenceSlots):
    """layer_major: True where a policy changes the prompt, so that prefill must go layer by layer. open_state: the
    recurrent layer that such a prefill is in. statistics: what is collected for the policies (and for the tree, where
    `Cache.create` was told to). stored: pages on disk that it begins with. pages: those of its prompt, on their way
    there.
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
        self.stored: StoredPrefix | None = None
        self.pages: PromptPages | None = None
        self._sealed: dict[int, int] = {}
        selection = page_selection(self.policies, model)
        offloads = offloading(self.policies)
        head_group = None if offloads is None else offloads.head_group
        acting = [policy for policy in self.policies if policy.compresses or policy.watches_decode]
        self._keeps_pages = acting == [offloads]
        self._aligned = all(window is None for window in model.windows)
        super().__init__(
            tiers, model, reservation, siblings, selection, head_group
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
        stored = self._stored_prefix(layer)
        prefix = stored or self._prefix(layer)
        scratch = self.open_rows.begin_scratch(layer, n, self.length, prefix)
        if not prefix:
            self.native_view.open_page(layer, scratch)
            return
        if stored:
            self._begin_sums(layer)
        else:
            self.spans.replace(layer, self.spans[layer][: -len(prefix)])
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
        if self.pages is not None:
            self.pages.put(layer, segment)
        n = self._sealed[layer] = segment.tokens - shared
        self.spans.add(layer, Span(segment, segment.tokens))
        window = self.model.windows[layer]
        if window is not None:
            unseen = n - window + 1
            keep_window(self.spans, self.builder, layer, n, unseen)
            drop_before(self.spans, self.native_view, layer, self.length + unseen)
        else:
            self.schedule.after_prefill(self, self.collector, layer, n, self.prompt)
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
        see, keeps its pages as they are.) Where no policy changes slots, the page that an earlier answer left open."""
        untouched = not self.prompt and self.length == self.hit
        if untouched and self.model.windows[layer] is None:
            return self.spans[layer]
        open_page = self._keeps_pages and self._aligned and self.length % PAGE > 0
        return self.spans[layer][-1:] if open_page else ()

    def _stored_prefix(self, layer: int) -> Sequence[Span]:
        """The pages on disk that a layer begins with. (A windowed layer has its own in memory.)"""
        return self.stored.spans(layer) if self.stored is not None and self.model.windows[layer] is None else ()

    @property
    def border(self) -> int:
        """Tokens of the prompt at which its column sums are kept on disk, so that no chunk goes across; 0: nowhere."""
        return 0 if self.pages is None else self.pages.border

    def put_sums(self, layer: int) -> None:
        """The rows before `border` are computed in a layer that is open, and no others."""
        sums = self.collector.sums_of(layer) if self.pages is not None else None
        if self.pages is not None and sums is not None:
            self.pages.put_sums(layer, sums[:, : self.pages.border])

    def _begin_sums(self, layer: int) -> None:
        """Column sums go on from those of the prefix, where they are wanted."""
        if self.stored is not None and self.statistics.column_sums:
            sums = self.stored.sums(layer, self.model.of(layer).heads)
            if sums is not None:
                self.collector.begin_sums(layer, sums)

    def put_pages(self) -> None:
        """What is computed of a prompt that is held whole goes to the disk, where it is kept."""
        if self.pages is not None:
            self.pages.put_pages(self.spans, self.length)

    def drop_stored(self) -> None:
        """Let go of what lies on disk of the prompt: it begins with nothing there, and nothing more goes there."""
        stored, self.stored = self.stored, None
        pages, self.pages = self.pages, None
        for held in (stored, pages):
            if held is not None:
                held.close()

    def accumulate_prompt(self, rows: int) -> Accumulator | None:
        """Where the native step of the next `rows` rows of a prompt (layer-major: of the open layer), which stay, puts
        their attention probabilities: None where no column sums are collected. Raises BudgetError.
        """
        scratch = self.open_rows.scratch
        if self.open_state is not None:
            return None
        if scratch is not None:
            return self.collector.native_prompt(scratch.layer, self._scratch_places(scratch))
        if not self.collector.sums_now:
            return None
        return self.collector.native_prompt(None, self.native_view.widest(self.policy_layers) + rows)

    def _scratch_places(self, scratch: Scratch) -> int:
        """The most places of a KV head of the layer that is open, when its prompt is complete."""
        return max(self.place_counts(scratch.layer)) - self.open_rows.rows(scratch.layer) + scratch.rows

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
        if self._keeps_pages and (self._aligned or self.length == self.hit):
            reopen(self.tail, self.spans, self.builder, self.length + n)
        self.length += n
        self.prompt = self.length
        self.collector.prefilling = False
        self.native_view.drop()
        self.schedule.begin(self.length)
