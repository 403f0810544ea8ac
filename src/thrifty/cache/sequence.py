"""What one sequence holds: for every layer an ordered list of spans over segments, and an open tail.

The calls, as the engine makes them:

    plain prefill or decode step           compressing prefill (`sequence.layer_major` is True)
    ------------------------------         ------------------------------------------------------
    sequence.reserve(n)                    for layer in range(layers):
    for every layer:                           sequence.begin_layer(layer, n)
        sequence.append(layer, k, v)           for chunk in chunks:      # of the layer's hidden states
        sequence.attend(layer, q, ...)             sequence.append(layer, k, v); sequence.attend(layer, q, ...)
    sequence.truncate(rejected)                sequence.seal_layer(layer)
    sequence.commit(accepted)              sequence.commit(n)

Where a policy rehearses (`sequence.rehearses`), a plain prefill is followed by the calls of `Rehearsals`.

Natively `sequence.native` stands for append and attend: the plan writes rows into the same open pages.

Order rule: a row attends to its layer's spans in list order, each in blocks of 64 slots from its own start. Pages
begin at the same tokens whatever the chunking, batch or prefix hit, so results do not depend on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thrifty.cache.carry import carry_out
from thrifty.cache.collector import ROWS_AT_ONCE, Collector
from thrifty.cache.editor import Editor
from thrifty.cache.mirror import Mirror, native_view
from thrifty.cache.policy import CachePolicy, ModelInfo, Statistics, Stats, layer_major, rehearsing, wanted
from thrifty.cache.reading import Selection, Source, attended, reachable
from thrifty.cache.rehearsal import Rehearsals
from thrifty.cache.rollback import check, roll_back
from thrifty.cache.segment import Segment, Span
from thrifty.cache.sums import Accumulator
from thrifty.cache.tail import Tail
from thrifty.cache.view import LayerView
from thrifty.errors import PromptError
from thrifty.formats.kv import PAGE
from thrifty.kernels.reference import attention

if TYPE_CHECKING:
    from thrifty.cache.tiers import Tiers
    from thrifty.storage.ledger import Reservation

NEVER = 1 << 62


class SequenceCache:
    """The cache of one sequence. Made by `Cache.create` or `fork`; belongs to one thread at a time.

    length: committed tokens, evicted ones included: the position of the next token.
    hit: tokens that came from the prefix tree (they count in `length`).
    layer_major: True where a policy changes the prompt, so that prefill must go layer by layer.
    statistics: what is collected for the policies (and for the tree, where `Cache.create` was told to).
    """

    def __init__(
        self,
        tiers: Tiers,
        model: ModelInfo,
        policies: Sequence[CachePolicy] = (),
        *,
        reservation: Reservation | None = None,
        collect: Statistics | None = None,
    ) -> None:
        """Made by `Cache.create`, which knows the prefix tree. reservation: promised bytes to draw from; it is
        released by `free`. collect: statistics beyond those that the policies want."""
        self.model = model
        self.tiers = tiers
        self.policies = tuple(policies)
        self.reservation = reservation
        self.length = 0
        self.hit = 0
        self.prompt = 0
        self.parked = False
        self.last_used = 0
        self.layer_major = layer_major(self.policies)
        self.rehearses = rehearsing(self.policies)
        self.rehearsals: Rehearsals | None = None
        self.statistics = wanted(self.policies, model) | (collect or Statistics())
        self.collector = Collector(self.statistics, model, tiers.ledger, reservation)
        self.editor = Editor(tiers, model, reservation)
        self.global_layers = model.layers_with(None)
        self.spans: list[list[Span]] = [[] for _ in range(model.layers)]
        self.selected: dict[int, list[Selection]] = {}
        self.tail = Tail(tiers, model, model.layer_groups(), reservation)
        self._pending: dict[int, int] = {}
        self._scratch: tuple[int, Segment, int] | None = None
        self._sealed: dict[int, int] = {}
        self._due: list[int] = [NEVER] * len(self.policies)
        self._next_due = NEVER
        self._mirror: Mirror | None = None
        self._native_possible = True
        self._freed = False
        tiers.sequences.add(self)
        self._schedule_plain()

    # --- what it holds -------------------------------------------------------------------------------

    def slots(self, layer: int, head: int = 0) -> int:
        """Physical slots of one head now, uncommitted rows of the reference path included."""
        held = sum(span.count(layer, head) for span in self.spans[layer])
        return held + self._open_rows(layer)

    @property
    def nbytes(self) -> int:
        """Bytes of the segments it holds, in any tier; a shared segment counts in full."""
        return sum(segment.nbytes for segment in self.segments())

    def segments(self) -> list[Segment]:
        """Every segment that it holds, once."""
        found = {id(span.segment): span.segment for spans in self.spans for span in spans}
        found |= {id(page): page for pages in self.tail.pages for page in pages}
        if self._scratch is not None:
            found[id(self._scratch[1])] = self._scratch[1]
        return list(found.values())

    def sealed_counts(self, layer: int) -> list[int]:
        """Sealed slots of each KV head (without the open tail): those that policies see and edit."""
        spans = self.spans[layer]
        return [sum(span.count(layer, head) for span in spans) for head in range(self.model.kv_heads)]

    def view(self, layer: int) -> LayerView:
        """A layer's sealed slots as a policy sees them."""
        return LayerView(self.model.layer(layer, self.length, self.prompt), self.spans[layer])

    def stats(self, layer: int) -> Stats:
        """What was collected for a layer, aligned with its committed slots (the notes are the first policy's)."""
        return self.collector.stats(layer, self._counts(layer))

    # --- rows ----------------------------------------------------------------------------------------

    def remember(self, tokens: Sequence[int], start: int = 0) -> None:
        """The ids of the tokens at `start` and beyond, for policies that ask which token a slot holds: of a prompt
        before its rows come (those of a prefix hit too), of decoded rows before they are committed. No effect where
        nobody asks. Raises BudgetError.
        """
        self.collector.remember(tokens, start)

    def reserve(self, n: int) -> None:
        """Make room for n more rows in the open pages of every layer group. Cheap when there is room.

        Raises BudgetError or StorageError, with nothing changed.
        """
        missing = self.tail.missing(n)
        if missing <= 0:
            return
        made = self.tail.open(missing, self.length)
        if self._mirror is not None:
            for group, pages in zip(self.tail.groups, made, strict=True):
                for page in pages:
                    for layer in group.layers:
                        self._mirror.open_page(layer, page)

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Reference path: store rows [n, kv_heads, head_dim] (any float dtype, keys rotated) in the layer's open pages.

        Needs a `reserve` (or `begin_layer`) that holds them. Raises PromptError where it does not.
        """
        self._mirror = None
        rows = len(key)
        start = self._open_rows(layer)
        pages = self._open_segments(layer)
        room = sum(page.capacity for page in pages)
        if start + rows > room:
            raise PromptError(f"layer {layer} has room for {room - start} more rows, not {rows}: reserve them first")
        first = 0
        for page in pages:
            stop = first + page.capacity
            low, high = max(start, first), min(start + rows, stop)
            if low < high:
                part = slice(low - start, high - start)
                for head in range(self.model.kv_heads):
                    page.write(layer, head, low - first, key[part, head], value[part, head])
            first = stop
        self._pending[layer] = self._pending.get(layer, 0) + rows

    def attend(
        self,
        layer: int,
        query: Tensor,
        positions: Tensor | None = None,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Attention of query [n, heads, head_dim] over the layer's slots → [n, heads, head_dim] fp32.

        The rows are the newest n that were appended: row i sees every slot but the last n-1-i, and in a windowed layer
        only the last `window` of them. scale, softcap, window default to the model's. positions are the rows' logical
        positions (only their number is checked: keys are stored rotated). Collects the statistics that policies want.
        """
        rows, model = len(query), self.model
        if positions is not None and len(positions) != rows:
            raise PromptError(f"{len(positions)} positions for {rows} query rows: give one a row")
        query = query.float()
        window = model.windows[layer] if window is None else window
        softcap = model.softcap if softcap is None else softcap
        keep_sums = self.collector.sums_now and window is None
        apart = keep_sums and self._scratch is None and rows <= ROWS_AT_ONCE
        out = torch.empty(rows, model.heads, model.head_dim)
        sums = []
        for head in range(model.kv_heads):
            part = slice(head * model.group, (head + 1) * model.group)
            selection = self.selected[layer][head] if layer in self.selected else None
            spans, columns = attended(self._sources(layer, head, rows, window), head, selection)
            found = attention.attend(
                query[:, part],
                spans,
                scale=model.scale if scale is None else scale,
                window=window,
                softcap=softcap or 0.0,
                column_sums=keep_sums and not apart,
                probabilities=apart,
            )
            out[:, part] = found.out
            if apart and found.probabilities is not None:
                self.collector.add_rows(layer, head, columns.of(found.probabilities))
            elif found.column_sums is not None:
                sums.append(columns.of(found.column_sums))
        if sums and self._scratch is not None:
            self.collector.add_sums(layer, sums)
        elif sums:
            for head, one in enumerate(sums):
                self.collector.add_block(layer, head, one)
        self.collector.add_queries(layer, query)
        return out

    def commit(self, n: int) -> None:
        """Accept the n rows appended since the last commit. Drops window pages, calls policies that are due.

        O(1) but at events (page boundary, a policy's period). Rejected rows must have been truncated before.
        """
        if self._sealed:
            self._commit_prompt(n)
            return
        if self._pending:
            self._check_pending(n)
        if self.collector.pending():
            self.collector.commit({layer: self._counts(layer) for layer in self.global_layers})
            self.collector.settle()
        self.collector.commit_native()
        self._pending = {}
        self.tail.rows += n
        self.length += n
        if self.tail.rows >= PAGE:
            self._roll()
        if self.length >= self._next_due:
            self._after_decode()

    def truncate(self, n: int) -> None:
        """Drop the newest n rows: uncommitted ones first, then committed ones.

        Raises PromptError, with nothing changed, where a windowed layer has already let go of what the shorter sequence
        would need. What a policy evicted stays evicted.
        """
        if self._scratch is not None or self._sealed:
            raise PromptError("a prompt that is being prefilled layer by layer cannot be truncated; free the sequence")
        rejected = min(n, max(self._pending.values(), default=0))
        if self._mirror is not None:
            held = sum(span.tokens for span in self.spans[0] if span.holds(0)) + self.tail.rows
            rejected = min(n, self._mirror.view.tokens(0, 0) - held)
        if n > rejected:
            check(self, self.length - (n - rejected))
        if rejected:
            self.collector.truncate(rejected)
            if self._mirror is not None:
                for layer in range(self.model.layers):
                    self._mirror.view.truncate(layer, rejected)
            self._pending = {layer: rows - rejected for layer, rows in self._pending.items() if rows > rejected}
        if n > rejected:
            self._mirror = None
            roll_back(self, self.length - (n - rejected))
            self._due = [min(due, self.length + one.period) for due, one in zip(self._due, self.policies, strict=True)]
            self.collector.shorten(self.length)
            for layer in self.global_layers:
                self.collector.fit(layer, self._counts(layer), self.length)

    def discard(self) -> None:
        """Drop all uncommitted rows, also those that a failed step left in some layers only."""
        self._pending = {}
        self._mirror = None
        self.collector.discard()

    def start_at(self, length: int) -> None:
        """Called by `Cache.create`: the spans of a prefix of `length` tokens were put in."""
        self.length = self.hit = length
        self._schedule_plain()

    # --- rehearsals ----------------------------------------------------------------------------------

    def begin_rehearsals(self, prompt: Sequence[int]) -> Rehearsals:
        """The prompt (token ids, all that the sequence holds) is committed: what its policy wants to see now.

        Raises BudgetError where scoring does not fit.
        """
        if self.rehearses is None:
            raise PromptError("no cache technique of this sequence rehearses its prompt")
        self.rehearsals = Rehearsals(self, self.rehearses, prompt)
        return self.rehearsals

    def complete_prompt(self) -> None:
        """The rehearsals are over: all policies act on the prompt, the one that rehearsed first, on all layers."""
        if self.rehearses is None or self.rehearsals is None or self.rehearsals.open:
            raise PromptError("the prompt was not rehearsed to its end: call begin_rehearsals, and end each of them")
        self.seal_tail()
        self.tail.close()
        self._mirror = None
        self.collector.prefilling = True
        self.prompt = self.length
        views = [self.view(layer) for layer in self.global_layers]
        edits = self.rehearses.after_prompt(views, self.rehearsals.received())
        self._end_rehearsals()
        carry_out(self, edits, self.global_layers)
        for layer in self.global_layers:
            self._after_prefill(layer, 0)
        self.collector.prefilling = False
        self._schedule()

    def _end_rehearsals(self) -> None:
        if self.rehearsals is not None:
            self.rehearsals.close()
            self.rehearsals = None

    # --- layer-major prefill -------------------------------------------------------------------------

    def begin_layer(self, layer: int, n: int) -> None:
        """Layer-major prefill: take full-precision scratch for n new rows of one layer.

        Raises BudgetError or StorageError, with nothing changed.
        """
        if self._scratch is not None:
            raise PromptError(f"layer {self._scratch[0]} is still open: seal it before layer {layer} begins")
        if not self._sealed:
            self.seal_tail()
            self.tail.close()
            self.collector.prefilling = True
        segment = Segment(
            self.tiers,
            (layer,),
            tuple(range(self.model.kv_heads)),
            -(-n // PAGE) * PAGE,
            self.model.format,
            self.model.head_dim,
            category="scratch",
            reservation=self.reservation,
        )
        segment.positions = self.length
        self._pending.pop(layer, None)
        self._scratch = (layer, segment, n)
        if self._mirror is not None:
            self._mirror.open_page(layer, segment)

    def observe(self, layer: int, queries: Tensor | None, column_sums: list[Tensor] | None = None) -> None:
        """Native layer-major prefill: hand over what `attend` would have collected, before `seal_layer`.

        queries: the newest rows [w, heads, head_dim] fp32 rotated, w ≥ `statistics.queries` or all there are.
        column_sums: [group, slots] a KV head.
        """
        if queries is not None:
            self.collector.add_queries(layer, queries)
        if column_sums is not None:
            self.collector.add_sums(layer, column_sums)

    def seal_layer(self, layer: int, stats: Stats | None = None) -> None:
        """Layer-major prefill: run the policies' after_prefill in order, store the result, give the scratch back.

        stats: as for `observe`. The scratch itself becomes the segment where no policy changes anything.
        """
        if self._scratch is None or self._scratch[0] != layer:
            raise PromptError(f"layer {layer} was not begun: call begin_layer first")
        if stats is not None:
            self.observe(layer, stats.queries, stats.column_sums)
        _, segment, n = self._scratch
        segment.tokens = n
        segment.recategorise("cache")
        self._scratch = None
        self._sealed[layer] = n
        self._pending.pop(layer, None)
        self.spans[layer].append(Span(segment, n))
        if self.model.windows[layer] is not None:
            self._keep_window(layer, n)
        else:
            self._after_prefill(layer, n)
        if self._mirror is not None:
            self._rebuild(layer)

    # --- sharing, parking, ending --------------------------------------------------------------------

    def fork(self, reservation: Reservation | None = None) -> SequenceCache:
        """A second sequence with the same committed content: sealed segments are shared, the open page is copied.

        reservation: what the fork draws from. Raises BudgetError with nothing changed.
        """
        if self._scratch is not None or self._sealed:
            raise PromptError("a prompt that is being prefilled layer by layer cannot be forked yet")
        if self.rehearsals is not None:
            raise PromptError("a prompt that is being rehearsed cannot be forked yet")
        other = SequenceCache(self.tiers, self.model, self.policies, reservation=reservation)
        other.statistics, other.layer_major = self.statistics, self.layer_major
        other.length, other.hit, other.prompt = self.length, self.hit, self.prompt
        other._due, other._next_due = list(self._due), self._next_due
        other.selected = dict(self.selected)
        try:
            if self.tail.rows:
                other.tail.open(1, self.length)
                for mine, theirs in zip(self.tail.pages, other.tail.pages, strict=True):
                    theirs[0].copy_from(mine[0])
            other.tail.rows = self.tail.rows
            other.tail.number(self.length)
            other.collector = self.collector.copy(reservation)
        except BaseException:
            other.tail.close()
            raise
        for spans, theirs_spans in zip(self.spans, other.spans, strict=True):
            for span in spans:
                span.segment.retain()
            theirs_spans.extend(spans)
        return other

    def free(self) -> None:
        """Release everything, the reservation included. A second call has no effect."""
        if self._freed:
            return
        self._freed = True
        with self.tiers.arena.together():
            self._release_all()
        if self.reservation is not None:
            self.reservation.release()

    def _release_all(self) -> None:
        self._mirror = None
        self._end_rehearsals()
        self.tail.close()
        if self._scratch is not None:
            self._scratch[1].release()
            self._scratch = None
        held = Counter(id(span.segment) for spans in self.spans for span in spans)
        for segment in {id(span.segment): span.segment for spans in self.spans for span in spans}.values():
            segment.release(held[id(segment)])
        self.spans = [[] for _ in self.spans]
        self.collector.free()

    def __del__(self) -> None:
        if getattr(self, "_freed", True) is False:  # dropped without free(): its bytes must not stay charged
            self.free()

    def park(self) -> None:
        """The engine will not step this sequence for a while: its promise ends and its segments may move to disk."""
        self._leave_native()
        self.parked = True
        if self.reservation is not None:
            self.reservation.suspend()

    def resume(self) -> None:
        """Bring every segment back to memory before the next step.

        Raises BudgetError where there is no room; the sequence is then still parked and whole.
        """
        if not self.parked:
            return
        away = [segment.owner for segment in self.segments() if segment.tier == "disk"]
        if self.reservation is not None:
            needed = max(self.reservation.outstanding, sum(segment.nbytes for segment in away))
            self.tiers.make_room(needed)
            self.reservation.resume()
        try:
            for segment in away:
                segment.to_memory()
        except BaseException:
            if self.reservation is not None:
                self.reservation.suspend()
            raise
        self.parked = False

    @property
    def native(self) -> Any:
        """The native View kept in step with the spans, or None where a step needs the reference path: no native
        module, a segment on disk, a selection, or column sums over slots with holes. Ask for it anew at every step."""
        if self._mirror is None and self._native_possible:
            self._mirror = self._mirrored()
        return None if self._mirror is None else self._mirror.view

    @property
    def newest_native(self) -> Any:
        """The native View that the newest rows were appended through; None where the reference path appended them."""
        return None if self._mirror is None else self._mirror.view

    def accumulate_rows(self, rows: int) -> Accumulator | None:
        """Where the native step of the next `rows` rows, which may be rejected, leaves their attention probabilities:
        None where no column sums are collected. Raises BudgetError.
        """
        return self.collector.native_rows(rows, self._widest() + rows) if self.collector.sums_now else None

    def accumulate_prompt(self, rows: int) -> Accumulator | None:
        """The same for `rows` rows of a prompt (layer-major: of the layer that is open), which stay."""
        if self._scratch is not None:
            layer, _, n = self._scratch
            return self.collector.native_prompt(layer, max(self.sealed_counts(layer)) + n)
        return self.collector.native_prompt(None, self._widest() + rows) if self.collector.sums_now else None

    # --- inside --------------------------------------------------------------------------------------

    def seal_tail(self) -> None:
        """Make the partly filled open page a sealed span of its own, so that edits may touch its slots."""
        if self.tail.rows:
            self._adopt(self.tail.rows)
            self.tail.number(self.length)
            self._mirror = None

    def select(self, layer: int, indices: tuple[Tensor, ...] | None) -> None:
        """Attend to these sealed slots of a layer (one tensor a KV head) and to all newer ones; None ends it."""
        self._mirror = None
        if indices is None:
            self.selected.pop(layer, None)
        else:
            counts = self.sealed_counts(layer)
            self.selected[layer] = [Selection(slots, count) for slots, count in zip(indices, counts, strict=True)]

    def replace_spans(self, layer: int, spans: list[Span]) -> None:
        """A layer's new spans, with their references; the old ones were released by the editor."""
        self.spans[layer] = spans
        self._mirror = None

    def exchange_span(self, layer: int, place: int, span: Span) -> None:
        """One span's contents in another form; the caller keeps the old one's reference."""
        spans = self.spans[layer]
        spans[place] = span
        if self._mirror is not None and all(len(one.segment.heads) == self.model.kv_heads for one in spans):
            self._mirror.exchange(layer, place % len(spans), span)
        else:
            self._mirror = None

    def _leave_native(self) -> None:
        """Let the view go, but not the uncommitted rows that native code appended: a chunk may be half done."""
        if self._mirror is not None:
            view = self._mirror.view
            for layer, spans in enumerate(self.spans):
                held = sum(span.tokens for span in spans if span.holds(0)) + self.tail.rows
                self._pending[layer] = view.tokens(layer, 0) - held
            self._pending = {layer: rows for layer, rows in self._pending.items() if rows}
        self._mirror = None

    def _mirrored(self) -> Mirror | None:
        if self.selected or self.parked or (self.collector.sums_now and self._has_holes()):
            return None
        if any(segment.tier != "memory" for segment in self.segments()):
            return None
        view = native_view(self.model)
        if view is None:
            self._native_possible = False
            return None
        mirror = Mirror(view, self.model)
        for layer in range(self.model.layers):
            self._rebuild(layer, mirror)
        self._pending = {}  # the view has them
        return mirror

    def _has_holes(self) -> bool:
        return any(span.segment.parent is not None for layer in self.global_layers for span in self.spans[layer])

    def _widest(self) -> int:
        """Slots of the head that holds most, in the native view."""
        assert self._mirror is not None, "the native view was asked for"
        view, heads = self._mirror.view, range(self.model.kv_heads)
        return max((view.tokens(layer, head) for layer in self.global_layers for head in heads), default=0)

    def _rebuild(self, layer: int, mirror: Mirror | None = None) -> None:
        mirror = mirror or self._mirror
        if mirror is None:
            return
        mirror.rebuild(layer, self.spans[layer], self._open_pages(layer), self._first_page(layer))

    def _first_page(self, layer: int) -> int:
        """Pages that a windowed layer has let go before its first span."""
        if self.model.windows[layer] is None or not self.spans[layer]:
            return 0
        first = self.spans[layer][0].segment.positions
        return first // PAGE if isinstance(first, int) else 0

    def _counts(self, layer: int) -> list[int]:
        return [count + self._open_rows(layer) for count in self.sealed_counts(layer)]

    def _open_segments(self, layer: int) -> list[Segment]:
        if self._scratch is not None and self._scratch[0] == layer:
            return [self._scratch[1]]
        return self.tail.of(layer)

    def _open_pages(self, layer: int) -> list[tuple[Segment, int]]:
        """A layer's open segments, each with the rows in it."""
        rows, pages = self._open_rows(layer), []
        for page in self._open_segments(layer):
            pages.append((page, min(page.capacity, rows)))
            rows -= pages[-1][1]
        return pages

    def _open_rows(self, layer: int) -> int:
        """Rows of a layer that lie in its open segments."""
        pending = self._pending.get(layer, 0)
        return pending if self._scratch is not None and self._scratch[0] == layer else self.tail.rows + pending

    def _sources(self, layer: int, head: int, rows: int, window: int | None) -> list[Source]:
        """What one head's newest rows may see, in order."""
        spans = self.spans[layer]
        sources = [Source(span.segment, span.layer(layer), span.tokens) for span in spans if span.holds(head)]
        sources += [Source(page, layer, tokens) for page, tokens in self._open_pages(layer) if tokens]
        return sources if window is None else reachable(sources, rows + window - 1)

    def _adopt(self, rows: int) -> None:
        """Every group's first open page becomes a sealed span of `rows` slots of all its layers."""
        for group, page in self.tail.take():
            page.tokens = rows
            page.retain(len(group.layers) - 1)
            span = Span(page, rows)
            for layer in group.layers:
                self.spans[layer].append(span)
        self.tail.rows -= rows

    def _check_pending(self, n: int) -> None:
        if any(rows != n for rows in self._pending.values()) or len(self._pending) != self.model.layers:
            found = sorted({self._pending.get(layer, 0) for layer in range(self.model.layers)})
            raise PromptError(f"commit({n}): the layers hold {found} uncommitted rows; truncate or append first")

    def _roll(self) -> None:
        """Full open pages become sealed spans; windowed layers let go of pages that no later row can see."""
        while self.tail.rows >= PAGE:
            self._adopt(PAGE)
        for group in self.tail.groups:
            if group.window is not None:
                for layer in group.layers:
                    self._drop_before(layer, self.length - group.window + 1)

    def _drop_before(self, layer: int, position: int) -> None:
        """Drop the leading spans of a windowed layer whose tokens all lie before `position`."""
        spans = self.spans[layer]
        count = 0
        while count < len(spans):
            first = spans[count].segment.positions
            if not isinstance(first, int) or first + spans[count].tokens > position:
                break
            count += 1
        if count:
            for span in spans[:count]:
                span.segment.release()
            del spans[:count]
            if self._mirror is not None:
                self._mirror.drop_front(layer, count)

    def _commit_prompt(self, n: int) -> None:
        missing = [layer for layer in range(self.model.layers) if self._sealed.get(layer) != n]
        if missing or self._scratch is not None:
            raise PromptError(f"commit({n}): layers {missing[:8]} are not sealed with {n} rows")
        self._sealed = {}
        self._pending = {}
        self.length += n
        self.prompt = self.length
        self.collector.prefilling = False
        self._mirror = None
        self._schedule()

    def _schedule_plain(self) -> None:
        """What is not compressed when its prompt ends counts its policies' periods from the beginning."""
        if not self.layer_major and self.rehearses is None:
            self._schedule()

    def _schedule(self) -> None:
        self._due = [self.length + one.period if one.watches_decode else NEVER for one in self.policies]
        self._next_due = min(self._due, default=NEVER)

    def _keep_window(self, layer: int, n: int) -> None:
        """A windowed layer's prompt: only whole pages that a later row can still see, each a segment."""
        unseen = n - (self.model.windows[layer] or 0) + 1  # negative where a prefix hit is still seen
        if n > PAGE:
            scratch = self.spans[layer].pop()
            self.spans[layer] += self.editor.pages(layer, scratch, max(0, unseen) // PAGE * PAGE)
        self._drop_before(layer, self.length + unseen)

    def _after_prefill(self, layer: int, n: int) -> None:
        info = self.model.layer(layer, self.length + n, self.length + n)
        for index, policy in enumerate(self.policies):
            if not policy.compresses:
                continue
            stats = self.collector.stats(layer, self.sealed_counts(layer), index)
            edits = policy.after_prefill(info, LayerView(info, self.spans[layer]), stats)
            carry_out(self, edits, (layer,))
        self.collector.forget(layer)
        self.collector.settle()

    def _after_decode(self) -> None:
        for index, policy in enumerate(self.policies):
            if self.length < self._due[index]:
                continue
            self._due[index] = self.length + policy.period
            views = [self.view(layer) for layer in self.global_layers]
            stats = [self.collector.stats(layer, self.sealed_counts(layer), index) for layer in self.global_layers]
            edits = policy.after_decode(views, stats)
            if edits:
                carry_out(self, edits, self.global_layers)
        self.collector.settle()
        self._next_due = min(self._due, default=NEVER)
