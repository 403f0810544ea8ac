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

from collections.abc import Callable, Sequence

import numpy as np

from thrifty.arrays import Floats
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.rehearsing_policy import RehearsingPolicy
from thrifty.cache.sequence_prompt import SequencePrompt
from thrifty.cache.slots.segment import INDEX
from thrifty.cache.statistics import Rehearsal
from thrifty.cache.watching.scored_slots import LayerKeys, ScoredSlots
from thrifty.errors import PromptError
from thrifty.formats.kv import PAGE
from thrifty.kernels import dispatch


def working_bytes(model: ModelInfo, prompt: int, rows: int) -> int:
    """Upper bound of what scoring holds, for a prompt of `prompt` tokens and at most `rows` forced ones: the scores and
    their order, one layer's keys, and a block's attention twice. Native code reads keys where they lie, and holds a
    block's attention to the scored slots, padded, and a row of it a worker (`dispatch.witness`)."""
    widths = [model.of(layer) for layer in model.policy_layers]
    pairs = prompt * sum(own.kv_heads for own in widths)
    slots = prompt + rows  # a rehearsal sees no more of the prompt than all of it
    keys = 4 * slots * max((own.kv_heads * own.head_dim for own in widths), default=0)
    group = max((own.group for own in widths), default=0)
    return 32 * pairs + keys + 2 * 4 * (slots + PAGE) * PAGE * group


class Rehearsals:
    """The rehearsals of one sequence's prompt: what they are, and the scores that they give. Its bytes are charged as
    index bytes until `close`."""

    def __init__(
        self,
        sequence: SequencePrompt,
        policy: RehearsingPolicy,
        prompt: Sequence[int],
        truncate: Callable[[int], None],
    ) -> None:
        """truncate: drops so many of the sequence's newest rows. Raises BudgetError where the scores do not fit,
        PromptError where `prompt` (token ids) is not what the sequence holds.
        """
        if len(prompt) != sequence.length:
            raise PromptError(f"the sequence holds {sequence.length} tokens; its prompt cannot have {len(prompt)}")
        self._sequence, self._policy, self._truncate = sequence, policy, truncate
        self._model = sequence.model
        self._first = sequence.prompt
        self.pieces = policy.rehearsals(self._model, prompt, self._first)
        self._piece: Rehearsal | None = None
        self._rows: dict[int, int] = {}
        self._keys: LayerKeys | None = None
        self._slots: ScoredSlots | None = None
        longest = max((len(piece.tokens) for piece in self.pieces), default=0)
        self._charged = working_bytes(self._model, len(prompt), longest) if self.pieces else 0
        sequence.tiers.charge(INDEX, self._charged, sequence.reservation)
        new, layers = len(prompt) - self._first, sequence.policy_layers if self.pieces else ()
        kv_heads = {layer: self._model.of(layer).kv_heads for layer in layers}
        self._scores = {layer: np.full((count, new), np.inf, np.float32) for layer, count in kv_heads.items()}

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
        self._truncate(len(self._piece.tokens))
        self._piece = self._keys = self._slots = None

    def scores(self) -> list[list[Floats]]:
        """By layer that policies act on, and KV head, fp32 [sealed slots]; infinite where a slot was not rehearsed."""
        return [
            [self._of_slots(layer, head) for head in range(self._model.of(layer).kv_heads)]
            for layer in self._sequence.policy_layers
        ]

    def close(self) -> None:
        """Forget the scores and give their bytes back."""
        self._scores, self._keys, self._slots = {}, None, None
        charged, self._charged = self._charged, 0
        self._sequence.tiers.ledger.credit(INDEX, charged, self._sequence.reservation)

    def _observed_natively(self, piece: Rehearsal, layer: int, queries: Floats, rows: int) -> bool:
        """The same as `_observe` by native code, `rows` forced ones with these. False, with nothing done, where the
        reference path appended them, the policy's formula is its own, or slots have a bias or are hidden (`witness`
        knows neither)."""
        view, reduction, model = self._sequence.native_view.view, self._policy.reduction, self._model
        if view is None or reduction is None:
            return False
        if self._slots is None or self._slots.layer != layer:
            self._slots = ScoredSlots(self._model, self._sequence.spans, self._sequence.tail, layer, piece)
        slots = self._slots
        if slots.biased:
            return False
        table = dispatch.witness(
            view, layer, queries, slots.bounds,
            forced=rows, scale=model.scale, softcap=model.softcap or 0.0, mean=reduction == "mean",
        )  # fmt: skip
        for head, positions in enumerate(slots.positions):
            scores, columns = self._scores[layer][head], positions - self._first
            scores[columns] = np.maximum(scores[columns], table[head, : len(positions)])
        return True

    def _observe(self, piece: Rehearsal, layer: int, queries: Floats, done: int) -> None:
        """Score rows by the policy's own formula, `done` before them."""
        if self._keys is None or self._keys.layer != layer:
            self._keys = LayerKeys(self._model, self._sequence.spans, self._sequence.tail, layer, piece)
        self._keys.extend(done + len(queries))
        first = done
        while first < done + len(queries):
            stop = min(first + PAGE - (self._sequence.length + first) % PAGE, done + len(queries))
            self._score(self._keys, queries[first - done : stop - done], stop)
            first = stop

    def _score(self, keys: LayerKeys, queries: Floats, stop: int) -> None:
        widths = self._model.of(keys.layer)
        group = widths.group
        for head in range(widths.kv_heads):
            own = queries[:, head * group : (head + 1) * group].swapaxes(0, 1)
            scores = self._scores[keys.layer][head]
            columns = keys.positions[head] - self._first
            given = self._policy.score_rows(self._model, own, keys.until(head, stop), keys.scored(head))
            scores[columns] = np.maximum(scores[columns], given)

    def _of_slots(self, layer: int, head: int) -> Floats:
        positions = self._sequence.view(layer).positions(head)
        scores = np.full(len(positions), np.inf, np.float32)
        if layer in self._scores:
            new = positions >= self._first
            scores[new] = self._scores[layer][head][positions[new] - self._first]
        return scores
