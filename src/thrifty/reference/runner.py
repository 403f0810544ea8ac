"""The runner of the reference: steps of an engine by the decoder's own layers, with arrays in and out."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thrifty.arrays import Floats
from thrifty.decoding.scores import ArrayScores
from thrifty.reference.adapting import adapted
from thrifty.reference.arrays import array_of, tensor_of
from thrifty.reference.attention import Attend
from thrifty.reference.loading import build
from thrifty.reference.recurrent import Recur, recurrence

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.models.adapters import Adapter
    from thrifty.models.model import Model

BLOCK = 64  # rows computed together: a page, so any chunking computes the same blocks

Watch = Callable[[int, Floats], None]
Whole = npt.NDArray[np.int32]


class Extra(Protocol):
    """What rows are beyond plain tokens, as `engine.row_extra.RowExtra` has it."""

    @property
    def embeddings(self) -> Floats | None: ...

    @property
    def positions(self) -> Whole | None: ...

    @property
    def parents(self) -> tuple[int, ...] | None: ...

    @property
    def ahead(self) -> Whole | None: ...

    @property
    def adapter(self) -> Adapter | None: ...

    @property
    def taps(self) -> tuple[int, ...]: ...

    @property
    def residual(self) -> Mapping[int, Floats]: ...

    def part(self, first: int, stop: int) -> Self: ...


class Rows(Protocol):
    """Consecutive tokens of one sequence, as `engine.runner.Rows` has them: a dataclass with these fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def cache(self) -> SequenceCache: ...

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def start(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def watch(self) -> Watch | None: ...

    @property
    def extra(self) -> Extra | None: ...


AnyRows = TypeVar("AnyRows", bound=Rows)


class ReferenceRunner:
    """The decoder's own layers with the cache's reference attention. Any model, any policy; the oracle.

    Rows are computed one sequence at a time, and within a prompt in blocks of a page: so a
    result is the same bits in any batch and any chunking.
    """

    name = "reference"

    def __init__(self, model: Model, reason: str) -> None:
        self.reason = reason
        self.decoder = build(model).decoder
        self.layers = len(model.config.layers)
        self._config = model.config

    @torch.no_grad()
    def decode(self, batch: Sequence[Rows]) -> ArrayScores:
        """See engine.runner.Runner. Every row is computed alone, but for those that see each other."""
        logits, taps = [], _Taps()
        for rows in batch:
            if rows.extra is not None and rows.extra.ahead is not None:
                taps.rows += len(rows.tokens)
                logits.append(self.decoder.logits(self._forward(rows, taps, decodes=True)))
                continue
            paths, parents = _paths(rows), None if rows.extra is None else rows.extra.parents
            for place in range(len(rows.tokens)):
                taps.rows += 1
                part = _part(rows, place, place + 1, watch=None)
                if parents is not None:
                    part = dataclasses.replace(part, start=rows.start + len(paths[place]) - 1)
                hidden = self._forward(part, taps, None if parents is None else paths[place], decodes=True)
                logits.append(self.decoder.logits(hidden))
        return ArrayScores(array_of(torch.cat(logits)), taps.arrays())

    @property
    def most_rows(self) -> int:
        """See Runner: any number, as they go one by one."""
        return sys.maxsize

    @torch.no_grad()
    def prefill(self, rows: Rows, last: bool) -> ArrayScores | None:
        """See Runner."""
        hidden, taps = None, _Taps()
        for block in blocks(rows):
            taps = _Taps(1)
            hidden = self._forward(block, taps)
        if not last or hidden is None:
            return None
        return ArrayScores(array_of(self.decoder.logits(hidden[-1:])), taps.arrays())

    @torch.no_grad()
    def embed(self, tokens: Sequence[int], extra: Extra | None = None) -> Floats:
        """See Runner."""
        return array_of(self._embed(tokens, extra))

    @torch.no_grad()
    def run_layers(self, first: int, last: int, hidden: Floats, rows: Rows) -> Floats:
        """See Runner."""
        states = tensor_of(hidden)
        for index in range(first, last):
            for block in blocks(rows):
                place = block.start - rows.start
                piece = slice(place, place + len(block.tokens))
                states[piece] = self._layer(index, states[piece], block)
        return hidden

    @torch.no_grad()
    def logits(self, hidden: Floats) -> ArrayScores:
        """See Runner."""
        return ArrayScores(array_of(self.decoder.logits(tensor_of(hidden))))

    @property
    def workspace(self) -> int:
        """See Runner: a block's hidden states and MLP in fp32."""
        config = self._config
        layers = range(len(config.layers))
        queries = max(heads * head_dim for heads, _, head_dim in map(config.widths, layers))
        return 4 * BLOCK * (4 * config.hidden_size + 3 * max(map(config.inner, layers)) + 2 * queries)

    def keep_logits(self, rows: int) -> None:
        """See Runner: it keeps none between its calls."""

    def _embed(self, tokens: Sequence[int], extra: Extra | None) -> Tensor:
        ids = torch.tensor(tokens, dtype=torch.long)
        hidden = self.decoder.embed(ids.clamp(min=0))
        if extra is not None and extra.embeddings is not None:
            given = ids < 0
            hidden[given] = tensor_of(extra.embeddings)[given]
        return hidden

    def _forward(self, rows: Rows, taps: _Taps, path: Sequence[int] | None = None, decodes: bool = False) -> Tensor:
        hidden = self._embed(rows.tokens, rows.extra)
        for index in range(self.layers):
            hidden = self._layer(index, hidden, rows, path, decodes)
            if rows.extra is not None and index in rows.extra.taps:
                taps.take(index, hidden[-1])
        return hidden

    def _layer(
        self, index: int, hidden: Tensor, rows: Rows, path: Sequence[int] | None = None, decodes: bool = False
    ) -> Tensor:
        extra = rows.extra
        positions = torch.arange(rows.start, rows.start + len(rows.tokens))
        recur = recur_with(rows.cache)
        if extra is None:
            attend = attend_to(rows.cache, positions, rows.watch, decodes=decodes)
            return self.decoder.layer(index, hidden, positions, attend, rows.length, recur)
        attend = attend_to(rows.cache, positions, rows.watch, extra.ahead, path, decodes)
        if extra.positions is not None:
            positions = torch.from_numpy(extra.positions.astype(np.int64))
        with adapted(self.decoder, extra.adapter, index):
            hidden = self.decoder.layer(index, hidden, positions, attend, rows.length, recur)
        vector = extra.residual.get(index)
        return hidden if vector is None else hidden + tensor_of(vector)


class _Taps:
    """Hidden states of single rows behind layers. rows: how many have run."""

    def __init__(self, rows: int = 0) -> None:
        self.rows = rows
        self._states: dict[int, dict[int, Tensor]] = {}

    def take(self, layer: int, state: Tensor) -> None:
        """The newest row's state [hidden]."""
        self._states.setdefault(layer, {})[self.rows - 1] = state

    def arrays(self) -> dict[int, Floats]:
        """See Scores; rows that did not ask are zero."""
        arrays = {}
        for layer, states in self._states.items():
            out = arrays[layer] = np.zeros((self.rows, len(next(iter(states.values())))), np.float32)
            for row, state in states.items():
                out[row] = array_of(state)
        return arrays


def attend_to(
    cache: SequenceCache,
    positions: Tensor,
    watch: Watch | None = None,
    ahead: Whole | None = None,
    path: Sequence[int] | None = None,
    decodes: bool = False,
) -> Attend:
    """The decoder's injected attention over a sequence's cache: append the rows, then attend with them. ahead, path
    (of a row of a tree), decodes: see `SequenceCache.attend`.
    """

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cache.append(layer, array_of(key), array_of(value))
        queries = array_of(query.float())
        if watch is not None:
            watch(layer, queries)
        sight: dict[str, Any] = {"ahead": ahead, "path": path, "decodes": decodes or None}
        given = {name: value for name, value in sight.items() if value is not None}
        return tensor_of(cache.attend(layer, queries, array_of(positions), **given))

    return attend


def recur_with(cache: SequenceCache) -> Recur:
    """The decoder's injected recurrence over a sequence's states: go on from the newest rows'."""

    def recur(layer: int, query: Tensor, key: Tensor, value: Tensor, decay: Tensor) -> Tensor:
        state = tensor_of(cache.state(layer)).reshape(key.shape[1], key.shape[2], value.shape[2])
        mixed, state = recurrence(query, key, value, decay, state)
        cache.set_state(layer, array_of(state).reshape(-1), len(query))
        return mixed

    return recur


def _paths(rows: Rows) -> list[tuple[int, ...]]:
    """Of each row of a tree, the rows of the step on its path, itself last; empty for a line."""
    paths: list[tuple[int, ...]] = []
    for row, parent in enumerate(() if rows.extra is None else rows.extra.parents or ()):
        paths.append((*(paths[parent] if parent >= 0 else ()), row))
    return paths


def blocks(rows: AnyRows) -> list[AnyRows]:
    """The rows cut where pages begin; where a row would see beyond a cut, behind what it sees."""
    pieces = []
    done, count = 0, len(rows.tokens)
    ahead = None if rows.extra is None else rows.extra.ahead
    reach = None if ahead is None else np.maximum.accumulate(np.arange(count) + ahead)
    while done < count:
        start = rows.start + done
        stop = min(done + BLOCK - start % BLOCK, count)
        while reach is not None and reach[stop - 1] >= stop:
            stop = int(reach[stop - 1]) + 1
        pieces.append(_part(rows, done, stop))
        done = stop
    return pieces


def _part(rows: AnyRows, first: int, stop: int, **changes: Any) -> AnyRows:
    """Rows first..stop−1 of them, counted from their first."""
    if rows.extra is not None:
        changes["extra"] = rows.extra.part(first, stop)
    return dataclasses.replace(rows, tokens=rows.tokens[first:stop], start=rows.start + first, **changes)
