"""The runner of the reference: steps of an engine by the decoder's own layers, with arrays in and out."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from thrifty.arrays import Floats
from thrifty.decoding.scores import ArrayScores
from thrifty.reference.arrays import array_of, tensor_of
from thrifty.reference.attention import Attend
from thrifty.reference.loading import build

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.models.model import Model

BLOCK = 64  # rows computed together: a page, so any chunking computes the same blocks

Watch = Callable[[int, Floats], None]


class RowExtra(Protocol):
    """As `engine.row_extra.RowExtra` has it."""

    @property
    def parents(self) -> tuple[int, ...] | None: ...


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
    def extra(self) -> RowExtra | None: ...


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
        """See engine.runner.Runner. Every row is computed alone."""
        logits = []
        for rows in batch:
            paths, parents = _paths(rows), None if rows.extra is None else rows.extra.parents
            for place in range(len(rows.tokens)):
                part = _part(rows, place, place + 1, watch=None)
                if parents is None:
                    logits.append(self.decoder.logits(self._forward(part)))
                    continue
                row = dataclasses.replace(part, start=rows.start + len(paths[place]) - 1)
                logits.append(self.decoder.logits(self._forward(row, paths[place])))
        return ArrayScores(array_of(torch.cat(logits)))

    @property
    def most_rows(self) -> int:
        """See Runner: any number, as they go one by one."""
        return sys.maxsize

    @torch.no_grad()
    def prefill(self, rows: Rows, last: bool) -> ArrayScores | None:
        """See Runner."""
        hidden = None
        for block in blocks(rows):
            hidden = self._forward(block)
        if not last or hidden is None:
            return None
        return ArrayScores(array_of(self.decoder.logits(hidden[-1:])))

    @torch.no_grad()
    def embed(self, tokens: Sequence[int]) -> Floats:
        """See Runner."""
        return array_of(self._embed(tokens))

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
        widths = 4 * config.hidden_size + 3 * config.intermediate_size + 2 * config.query_width
        return 4 * BLOCK * widths

    def keep_logits(self, rows: int) -> None:
        """See Runner: it keeps none between its calls."""

    def _embed(self, tokens: Sequence[int]) -> Tensor:
        return self.decoder.embed(torch.tensor(tokens, dtype=torch.long))

    def _forward(self, rows: Rows, path: Sequence[int] | None = None) -> Tensor:
        hidden = self._embed(rows.tokens)
        for index in range(self.layers):
            hidden = self._layer(index, hidden, rows, path)
        return hidden

    def _layer(self, index: int, hidden: Tensor, rows: Rows, path: Sequence[int] | None = None) -> Tensor:
        positions = torch.arange(rows.start, rows.start + len(rows.tokens))
        attend = attend_to(rows.cache, positions, rows.watch, path)
        return self.decoder.layer(index, hidden, positions, attend, rows.length)


def attend_to(
    cache: SequenceCache, positions: Tensor, watch: Watch | None = None, path: Sequence[int] | None = None
) -> Attend:
    """The decoder's injected attention over a sequence's cache: append the rows, then attend with them. path: of a row
    of a tree, see `SequenceCache.attend`.
    """

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cache.append(layer, array_of(key), array_of(value))
        queries = array_of(query.float())
        if watch is not None:
            watch(layer, queries)
        if path is None:
            return tensor_of(cache.attend(layer, queries, array_of(positions)))
        return tensor_of(cache.attend(layer, queries, array_of(positions), path=path))

    return attend


def _paths(rows: Rows) -> list[tuple[int, ...]]:
    """Of each row of a tree, the rows of the step on its path, itself last; empty for a line."""
    paths: list[tuple[int, ...]] = []
    for row, parent in enumerate(() if rows.extra is None else rows.extra.parents or ()):
        paths.append((*(paths[parent] if parent >= 0 else ()), row))
    return paths


def blocks(rows: AnyRows) -> list[AnyRows]:
    """The rows cut where pages begin."""
    pieces = []
    done = 0
    while done < len(rows.tokens):
        start = rows.start + done
        stop = min(done + BLOCK - start % BLOCK, len(rows.tokens))
        pieces.append(_part(rows, done, stop))
        done = stop
    return pieces


def _part(rows: AnyRows, first: int, stop: int, **changes: Any) -> AnyRows:
    """Rows first..stop−1 of them, counted from their first."""
    return dataclasses.replace(rows, tokens=rows.tokens[first:stop], start=rows.start + first, **changes)
