"""Which token each slot of a sequence holds: one history for all layers, and lists of their own where slots went."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Integers

Ids = npt.NDArray[np.int32]

UNKNOWN = -1


@dataclass(frozen=True)
class _Edited:
    """A layer whose slots were changed. heads: int32 ids of each head's slots that stand for the history up to `stop`;
    later slots are the history's later tokens."""

    heads: tuple[Ids, ...]
    stop: int


class TokenIds:
    """int32 ids: of the sequence's tokens in order, and for every edited layer of each KV head's slots.

    Positions cannot stand in for them: a renumbered slot that is then gathered has lost the position it came from.
    """

    def __init__(self) -> None:
        self._history = array("i")
        self._edited: dict[int, _Edited] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        lists = sum(ids.nbytes for layer in self._edited.values() for ids in layer.heads)
        return len(self._history) * self._history.itemsize + lists

    def remember(self, tokens: Sequence[int], start: int) -> None:
        """The ids of the tokens at `start` and beyond; what nobody told before them is UNKNOWN."""
        gap = start - len(self._history)
        if gap > 0:
            self._history.extend([UNKNOWN] * gap)
        self._history[start : start + len(tokens)] = array("i", tokens)

    def of(self, layer: int, head: int, count: int) -> Integers:
        """int64 [count]: the ids of a head's slots, in order."""
        edited = self._edited.get(layer)
        if edited is None:
            return self._part(0, count).astype(np.int64)
        own = edited.heads[head]
        rest = self._part(edited.stop, max(0, count - len(own)))
        return np.concatenate((own, rest), dtype=np.int64)[:count]

    def keep(self, layer: int, indices: Sequence[Integers], sealed: Sequence[int]) -> None:
        """The layer kept these of each head's `sealed` slots, and all behind them."""
        if all(len(chosen) == count for chosen, count in zip(indices, sealed, strict=True)):
            return
        edited = self._edited.get(layer)
        heads = [self.of(layer, head, count)[indices[head]].astype(np.int32) for head, count in enumerate(sealed)]
        stop = sealed[0] if edited is None else edited.stop + sealed[0] - len(edited.heads[0])
        self._edited[layer] = _Edited(tuple(heads), stop)

    def share(self, layer: int, source: int) -> None:
        """`layer` reads what `source` holds from now on."""
        if source in self._edited:
            self._edited[layer] = self._edited[source]
        else:
            self._edited.pop(layer, None)

    def truncate(self, length: int) -> None:
        """Only the first `length` tokens of the sequence are left."""
        del self._history[length:]

    def fit(self, layer: int, counts: Sequence[int], length: int) -> None:
        """The layer lost its newest slots: its heads hold `counts`, and the sequence is `length` long."""
        edited = self._edited.get(layer)
        if edited is not None:
            heads = tuple(own[:count].copy() for own, count in zip(edited.heads, counts, strict=True))
            self._edited[layer] = _Edited(heads, min(edited.stop, length))

    def clear(self) -> None:
        """Forget everything."""
        self._history, self._edited = array("i"), {}

    def copy(self) -> TokenIds:
        """The same, for a fork; the lists of edited layers never change and are shared."""
        other = TokenIds()
        other._history, other._edited = self._history[:], dict(self._edited)
        return other

    def _part(self, start: int, count: int) -> Ids:
        """int32 [count]: the history from `start`, UNKNOWN beyond its end."""
        ids = np.full(count, UNKNOWN, np.int32)
        known = self._history[start : start + count]
        if known:
            ids[: len(known)] = np.frombuffer(known, np.int32)
        return ids
