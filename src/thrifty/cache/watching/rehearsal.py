"""Rehearsals: rows that are forced behind a complete prompt to see what they attend to, and that do not stay.

The calls, as the engine makes them once the prompt is committed:

    run = sequence.begin_rehearsals(prompt)
    for piece in run.pieces:
        run.begin(piece)
        for layer in range(layers):
            for chunk in chunks:                     # of piece.tokens, at the positions behind the prompt
                sequence.append(layer, k, v); sequence.attend(layer, q, ...); run.observe(layer, q)
        run.end()
    sequence.complete_prompt()

Scores do not depend on how the rows came: native code takes each row's softmax in the order of the slots, and the
reference scores blocks that end at multiples of 64 positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.slots.segment import INDEX
from thrifty.errors import PromptError
from thrifty.formats import kv
from thrifty.formats.kv import PAGE
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.cache.model_info import ModelInfo
    from thrifty.cache.policy import CachePolicy
    from thrifty.cache.sequence import SequenceCache


@dataclass(frozen=True)
class Rehearsal:
    """tokens: forced behind the prompt. They bear witness to the prompt's positions start..stop; positions below
    `sinks` are seen beside them."""

    tokens: tuple[int, ...]
    start: int
    stop: int
    sinks: int


def working_bytes(model: ModelInfo, prompt: int, rows: int) -> int:
    """Upper bound of what scoring holds, for a prompt of `prompt` tokens and at most `rows` forced ones: the scores and
    their order, one layer's keys, and a block's attention twice. Native code reads keys where they lie, and holds a
    block's attention to the judged slots, padded, and a row of it a worker (`dispatch.witness`)."""
    pairs = prompt * model.kv_heads * len(model.policy_layers)
    slots = prompt + rows  # a rehearsal sees no more of the prompt than all of it
    keys = 4 * slots * model.kv_heads * model.head_dim
    return 32 * pairs + keys + 2 * 4 * (slots + PAGE) * PAGE * model.group


class Rehearsals:
    """The rehearsals of one sequence's prompt: what they are, and the scores that they give. Its bytes are charged as
    index bytes until `close`."""

    def __init__(self, sequence: SequenceCache, policy: CachePolicy, prompt: Sequence[int]) -> None:
        """Raises BudgetError where the scores do not fit, PromptError where `prompt` is not what the sequence holds."""
        if len(prompt) != sequence.length:
            raise PromptError(f"the sequence holds {sequence.length} tokens; its prompt cannot have {len(prompt)}")
        self._sequence, self._policy = sequence, policy
        self._model = sequence.model
        self._first = sequence.prompt
        self.pieces = policy.rehearse(self._model, prompt, self._first)
        self._piece: Rehearsal | None = None
        self._rows: dict[int, int] = {}
        self._keys: _LayerKeys | None = None
        self._seen: _Seen | None = None
        longest = max((len(piece.tokens) for piece in self.pieces), default=0)
        self._charged = working_bytes(self._model, len(prompt), longest) if self.pieces else 0
        sequence.tiers.ledger.charge(INDEX, self._charged, sequence.reservation)
        shape = (self._model.kv_heads, len(prompt) - self._first)
        layers = sequence.policy_layers if self.pieces else ()
        self._scores = {layer: np.full(shape, np.inf, np.float32) for layer in layers}

    @property
    def charged(self) -> int:
        """Bytes that the ledger knows of."""
        return self._charged

    @property
    def open(self) -> bool:
        """Whether a rehearsal has begun and not ended."""
        return self._piece is not None

    def begin(self, piece: Rehearsal) -> None:
        """Make room for the piece's rows. Raises BudgetError or StorageError, with nothing changed."""
        if self.open:
            raise PromptError("a rehearsal is still open: end it first")
        self._sequence.reserve(len(piece.tokens))
        self._piece = piece
        self._rows = dict.fromkeys(self._model.attention_layers, 0)
        for scores in self._scores.values():
            scores[:, piece.start - self._first : piece.stop - self._first] = 0.0

    def observe(self, layer: int, queries: Floats) -> None:
        """The rotated queries [n, heads, head_dim] fp32 of the layer's next n rows, whose keys are appended."""
        piece = self._piece
        if piece is None:
            raise PromptError("no rehearsal is open: begin one first")
        if layer not in self._rows:  # a recurrent layer attends to nothing
            return
        done = self._rows[layer]
        self._rows[layer] = done + len(queries)
        if self._model.windows[layer] is not None:
            return
        if not self._observed_natively(piece, layer, queries, done + len(queries)):
            self._observe(piece, layer, queries, done)

    def end(self) -> None:
        """Drop the piece's rows. Raises PromptError where a layer has not had them all."""
        if self._piece is None or set(self._rows.values()) != {len(self._piece.tokens)}:
            raise PromptError(f"the layers have had {sorted(set(self._rows.values()))} rows of the rehearsal")
        self._sequence.truncate(len(self._piece.tokens))
        self._piece = self._keys = self._seen = None

    def received(self) -> list[list[Floats]]:
        """By global layer and KV head the scores of its sealed slots; infinite where a slot was not rehearsed."""
        return [
            [self._of_slots(layer, head) for head in range(self._model.kv_heads)]
            for layer in self._sequence.policy_layers
        ]

    def close(self) -> None:
        """Forget the scores and give their bytes back."""
        self._scores, self._keys, self._seen = {}, None, None
        charged, self._charged = self._charged, 0
        self._sequence.tiers.ledger.credit(INDEX, charged, self._sequence.reservation)

    def _observed_natively(self, piece: Rehearsal, layer: int, queries: Floats, rows: int) -> bool:
        """The same as `_observe` by native code, `rows` forced ones with these. False, with nothing done, where the
        reference path appended them, the policy's formula is its own, or slots have a bias or are hidden (`witness`
        knows neither)."""
        view, reduction, model = self._sequence.newest_native, self._policy.reduction, self._model
        if view is None or reduction is None:
            return False
        if self._seen is None or self._seen.layer != layer:
            self._seen = _Seen(self._sequence, layer, piece)
        seen = self._seen
        if seen.biased:
            return False
        found = dispatch.witness(
            view, layer, queries, seen.judged,
            forced=rows, scale=model.scale, softcap=model.softcap or 0.0, mean=reduction == "mean",
        )  # fmt: skip
        for head, places in enumerate(seen.places):
            scores, columns = self._scores[layer][head], places - self._first
            scores[columns] = np.maximum(scores[columns], found[head, : len(places)])
        return True

    def _observe(self, piece: Rehearsal, layer: int, queries: Floats, done: int) -> None:
        """Score rows by the policy's own formula, `done` before them."""
        if self._keys is None or self._keys.layer != layer:
            self._keys = _LayerKeys(self._sequence, layer, piece)
        self._keys.extend(done + len(queries))
        first = done
        while first < done + len(queries):
            stop = min(first + PAGE - (self._sequence.length + first) % PAGE, done + len(queries))
            self._score(self._keys, queries[first - done : stop - done], stop)
            first = stop

    def _score(self, keys: _LayerKeys, queries: Floats, stop: int) -> None:
        group = self._model.group
        for head in range(self._model.kv_heads):
            own = queries[:, head * group : (head + 1) * group].swapaxes(0, 1)
            scores = self._scores[keys.layer][head]
            places = keys.places[head] - self._first
            found = self._policy.witness(self._model, own, keys.until(head, stop), keys.seen(head))
            scores[places] = np.maximum(scores[places], found)

    def _of_slots(self, layer: int, head: int) -> Floats:
        positions = self._sequence.view(layer).positions(head)
        found = np.full(len(positions), np.inf, np.float32)
        if layer in self._scores:
            new = positions >= self._first
            found[new] = self._scores[layer][head][positions[new] - self._first]
        return found


class _Seen:
    """Where the native View of one layer holds, during one rehearsal, what its rows see.

    judged: by KV head the number of sinks, and the first slot that is rehearsed and the one behind the last. places: by
    head the positions of what is rehearsed, int64. biased: whether slots have a logit bias, which the view applies, or
    are hidden by a selection, which scores do not heed.
    """

    def __init__(self, sequence: SequenceCache, layer: int, piece: Rehearsal) -> None:
        self.layer = layer
        self.judged: list[tuple[int, int, int]] = []
        self.places: list[Integers] = []
        spans = sequence.spans[layer]
        self.biased = layer in sequence.selected or any(span.segment.bias is not None for span in spans)
        alike = all(
            isinstance(span.segment.positions, int) and len(span.segment.heads) == sequence.model.kv_heads
            for span in spans
        )
        for head in range(sequence.model.kv_heads):
            if head and alike:
                self.judged.append(self.judged[0])
                self.places.append(self.places[0])
            else:
                self._add(sequence, head, piece)

    def _add(self, sequence: SequenceCache, head: int, piece: Rehearsal) -> None:
        """One head's slots, which lie in the order of their positions."""
        parts = [
            span.segment.positions_of(head, span.tokens) for span in sequence.spans[self.layer] if span.holds(head)
        ]
        if sequence.tail.rows:
            parts.append(sequence.tail.of(self.layer)[0].positions_of(head, sequence.tail.rows))
        positions = np.concatenate(parts)
        bounds = [min(piece.sinks, piece.start), piece.start, piece.stop]
        sinks, low, high = positions.searchsorted(bounds).tolist()
        self.judged.append((sinks, low, high))
        self.places.append(positions[low:high])


class _LayerKeys:
    """Keys fp32 of one layer during one rehearsal, by KV head: sinks, what is rehearsed, and the forced rows so far.

    places: by head, the positions of what is rehearsed, int64.
    """

    def __init__(self, sequence: SequenceCache, layer: int, piece: Rehearsal) -> None:
        self.layer = layer
        self._sequence = sequence
        self._filled = 0
        self.places: list[Integers] = []
        self._before: list[int] = []
        self._keys: list[Floats] = []
        for head in range(sequence.model.kv_heads):
            sinks, _ = self._between(head, 0, min(piece.sinks, piece.start))
            context, places = self._between(head, piece.start, piece.stop)
            room = np.empty((len(piece.tokens), sequence.model.head_dim), np.float32)
            self.places.append(places)
            self._before.append(len(sinks))
            self._keys.append(np.concatenate((sinks, context, room)))

    def extend(self, rows: int) -> None:
        """Read the keys of the forced rows up to `rows`."""
        pages, start = self._sequence.tail.of(self.layer), self._sequence.tail.rows
        while self._filled < rows:
            page, inside = divmod(start + self._filled, PAGE)
            count = min(PAGE - inside, rows - self._filled)
            segment = pages[page]
            for head, keys in enumerate(self._keys):
                slab = segment.slab(self.layer, head)
                own, _ = kv.read(segment.format, slab, segment.capacity, segment.head_dim, inside, count)
                place = self._before[head] + len(self.places[head]) + self._filled
                keys[place : place + count] = own
            self._filled += count

    def seen(self, head: int) -> slice:
        """Where the rehearsed slots lie."""
        return slice(self._before[head], self._before[head] + len(self.places[head]))

    def until(self, head: int, rows: int) -> Floats:
        """[slots, head_dim]: everything up to the first `rows` forced rows."""
        return self._keys[head][: self._before[head] + len(self.places[head]) + rows]

    def _between(self, head: int, low: int, high: int) -> tuple[Floats, Integers]:
        """Keys and positions of the committed slots at positions low..high."""
        keys, places = [np.empty((0, self._sequence.model.head_dim), np.float32)], [np.empty(0, np.int64)]
        for span in self._sequence.spans[self.layer]:
            at = span.segment.positions
            if not span.holds(head) or (isinstance(at, int) and (at >= high or at + span.tokens <= low)):
                continue
            found, _, positions, _ = span.read(self.layer, head)
            inside = (positions >= low) & (positions < high)
            keys.append(found[inside])
            places.append(positions[inside])
        tail = self._sequence.tail
        if tail.rows:
            found, _, positions, _ = tail.of(self.layer)[0].read(self.layer, head, tail.rows)
            inside = (positions >= low) & (positions < high)
            keys.append(found[inside])
            places.append(positions[inside])
        return np.concatenate(keys), np.concatenate(places)
