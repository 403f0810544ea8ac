"""Prompts that mix token ids with embeddings: images, sound, or any rows that have no token."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from thrifty.arrays import Floats, Integers, frozen, squares_fit
from thrifty.decoding.option_values import shown
from thrifty.engine.prompts import prompt_ids
from thrifty.engine.row_extra import RowExtra, Whole, everyone
from thrifty.errors import PromptError

NO_TOKEN = -1  # the id of a row that brings its embedding
MOST = 2**31 - 1  # the greatest position


@dataclass(frozen=True, eq=False)
class Embeddings:
    """A piece of a prompt: first hidden states in the place of token ids.

    Its arrays are copied, and read-only. Raises PromptError for values of a wrong type or shape.
    """

    #: fp32 [n, hidden], n ≥ 1, as they enter the first layer (scaled, where the model scales its embeddings).
    values: Floats
    #: What the content is known by, such as a hash of an image: prompts with equal keys share their prefixes, so equal
    #: keys must stand for equal values. None: a hash of the values.
    key: Hashable = None
    #: Integers [n], or [3, n] (time, height, width) for ropes of three axes, ≥ 0, counted from where the piece begins.
    #: What follows goes on behind the greatest, and ends inside the engine's context. None: one row, one position.
    positions: Any = None
    #: Integers [n]: how many rows of the piece behind it each row sees as well (n−1, …, 0: all see each other).
    ahead: Any = None

    def __post_init__(self) -> None:
        values = self.values
        if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.ndim != 2 or not values.size:
            raise PromptError(f"embeddings are {_described(values)}; use a float32 array [rows, hidden size]")
        if not np.isfinite(values).all():
            raise PromptError("embeddings hold values that are not finite; check what made them")
        if not squares_fit(values):
            raise PromptError("embeddings hold rows whose squares have no finite sum in fp32; check what made them")
        try:
            hash(self.key)
        except TypeError:
            raise PromptError(f"key = {shown(self.key)} cannot be hashed; use a text or a number") from None
        rows = len(values)
        positions, ahead = _whole("positions", self.positions), _whole("ahead", self.ahead)
        if positions is not None and (positions.shape not in ((rows,), (3, rows)) or positions.min() < 0):
            raise PromptError(
                f"positions are {_described(positions)}; use integers of at least 0, [{rows}] or [3, {rows}]"
            )
        behind = np.arange(rows - 1, -1, -1)
        if ahead is not None and (ahead.shape != (rows,) or (ahead < 0).any() or (ahead > behind).any()):
            raise PromptError(f"ahead is {_described(ahead)}; use integers [{rows}] that stay inside the piece")
        for name, array in (("values", values), ("positions", positions), ("ahead", ahead)):
            object.__setattr__(self, name, None if array is None else frozen(array))

    @cached_property
    def identity(self) -> Hashable:
        """What tells its keys and values from those of others: the key, or else a hash of the values, which no key
        equals; and how its rows are placed and see.
        """
        content = ("values", _digest(self.values)) if self.key is None else ("key", self.key)
        return content, _digest(self.positions), _digest(self.ahead)


@dataclass(frozen=True, eq=False)
class PromptMedia:
    """What the embedded pieces of a prompt add to its token ids."""

    #: (first row, piece), in order.
    pieces: tuple[tuple[int, Embeddings], ...]
    #: Rows of the prompt.
    length: int
    #: int32 [length] or [3, length]; None: every row's position is its number.
    positions: Whole | None
    #: int32 [length]; None: no row sees ahead.
    ahead: Whole | None
    #: The position of the row behind the prompt, less `length`.
    shift: int
    #: What stands for a prompt whose rows all see each other, None for another: only the whole prompt shares its rows.
    whole: Hashable = None

    @property
    def hidden_size(self) -> int:
        """Width of the first piece."""
        return int(self.pieces[0][1].values.shape[1])

    @property
    def axes(self) -> int:
        """Positions a row."""
        return 3 if self.positions is not None and self.positions.ndim == 2 else 1

    @property
    def longest_span(self) -> int:
        """The most rows that must go through a layer together."""
        cuts = self._cuts
        return 1 if cuts is None else int(np.diff(cuts, prepend=0).max())

    def check(self, tokens: Sequence[int]) -> None:
        """Raise PromptError where these are not the ids of this prompt, or of one that goes on from it."""
        rows = [row for first, piece in self.pieces for row in range(first, first + len(piece.values))]
        if len(tokens) < self.length or [row for row, token in enumerate(tokens) if token < 0] != rows:
            raise PromptError(
                "the prompt's ids do not fit its embedded pieces (media); give ids and Embeddings in one prompt, and "
                "media = None"
            )

    def keys(self, tokens: Sequence[int]) -> list[Hashable]:
        """What the prefix tree knows rows by: token ids, and (identity, row) inside pieces."""
        keys: list[Hashable] = list(tokens)
        if self.whole is not None:
            keys[: self.length] = [(self.whole, row) for row in range(self.length)]
        for first, piece in self.pieces:
            identity = piece.identity
            keys[first : first + len(piece.values)] = [(identity, row) for row in range(len(piece.values))]
        return keys[: len(tokens)]

    def extra(self, start: int, stop: int) -> RowExtra:
        """Embeddings, positions and sight of the prompt's rows start..stop−1."""
        return RowExtra(
            embeddings=self._embeddings(start, stop),
            positions=None if self.positions is None else self.positions[..., start:stop],
            ahead=None if self.ahead is None else self.ahead[start:stop],
        )

    def cut(self, start: int, stop: int) -> int:
        """Where a chunk from `start` may end instead of at `stop`: before a span that it would cut, or behind it."""
        cuts = self._cuts
        if cuts is None:
            return stop
        place = int(np.searchsorted(cuts, stop, side="right"))
        before = int(cuts[place - 1]) if place else 0
        return before if before > start else int(cuts[place])

    @cached_property
    def _cuts(self) -> Integers | None:
        """The rows before which a chunk may end, rising; None: any."""
        if self.ahead is None:
            return None
        reach = np.maximum.accumulate(np.arange(self.length) + self.ahead)
        return np.flatnonzero(reach < np.arange(1, self.length + 1)) + 1

    def _embeddings(self, start: int, stop: int) -> Floats | None:
        parts = [(first, piece.values) for first, piece in self.pieces]
        parts = [(first, values) for first, values in parts if first < stop and first + len(values) > start]
        if not parts:
            return None
        first, values = parts[0]
        if first <= start and stop <= first + len(values):
            return values[start - first : stop - first]
        rows = np.zeros((stop - start, self.hidden_size), np.float32)
        for first, values in parts:
            low, high = max(first, start), min(first + len(values), stop)
            rows[low - start : high - start] = values[low - first : high - first]
        return rows


def mixed(prompt: Any) -> bool:
    """Whether a prompt has embedded pieces."""
    return isinstance(prompt, list | tuple) and any(isinstance(part, Embeddings) for part in prompt)


def flattened(prompt: Sequence[Any]) -> tuple[tuple[int, ...], PromptMedia]:
    """The ids of a mixed prompt, −1 for each embedded row, and what its pieces add. Raises PromptError."""
    ids = [part for part in prompt if not isinstance(part, Embeddings)]
    numbers = iter(prompt_ids(ids) if ids else ())
    if any(not isinstance(token, bool) and isinstance(token, int) and token < 0 for token in ids):
        raise PromptError("the prompt has token ids below 0; rows without a token are Embeddings")
    tokens: list[int] = []
    pieces: list[tuple[int, Embeddings]] = []
    for part in prompt:
        if isinstance(part, Embeddings):
            pieces.append((len(tokens), part))
            tokens += [NO_TOKEN] * len(part.values)
        else:
            tokens.append(next(numbers))
    widths = {piece.values.shape[1] for _, piece in pieces}
    if len(widths) > 1:
        raise PromptError(f"embeddings of widths {sorted(widths)} are in one prompt; use the model's hidden size")
    length = len(tokens)
    positions, after = _positions(pieces, length)
    return tuple(tokens), PromptMedia(tuple(pieces), length, positions, _ahead(pieces, length), after - length)


def seen_whole(tokens: Sequence[int]) -> PromptMedia:
    """Of a prompt of token ids whose rows all see each other, as those of a masked-diffusion model do."""
    ids = np.array(tokens, np.int64)
    return PromptMedia((), len(ids), None, everyone(len(ids)), 0, whole=("whole", _digest(ids)))


def _positions(pieces: Sequence[tuple[int, Embeddings]], length: int) -> tuple[Whole | None, int]:
    """The positions of all rows, and the one behind them."""
    if all(piece.positions is None for _, piece in pieces):
        return None, length
    three = any(piece.positions is not None and piece.positions.ndim == 2 for _, piece in pieces)
    positions = np.empty((3, length) if three else (1, length), np.int64)
    done = position = 0
    for first, piece in [*pieces, (length, None)]:
        positions[:, done:first] = np.arange(position, position + first - done)
        position, done = position + first - done, first
        if piece is not None:
            count = len(piece.values)
            own = np.arange(count) if piece.positions is None else piece.positions.astype(np.int64)
            positions[:, first : first + count] = position + own
            position, done = position + int(own.max()) + 1, first + count
    if position - 1 > MOST:
        raise PromptError(f"the prompt's positions go up to {position - 1}; positions are integers of 32 bits")
    return positions.astype(np.int32) if three else positions[0].astype(np.int32), position


def _ahead(pieces: Sequence[tuple[int, Embeddings]], length: int) -> Whole | None:
    if all(piece.ahead is None for _, piece in pieces):
        return None
    ahead = np.zeros(length, np.int32)
    for first, piece in pieces:
        if piece.ahead is not None:
            ahead[first : first + len(piece.values)] = piece.ahead
    return ahead


def _digest(values: Any) -> str:
    """A hash of an array's shape and content; "" of None."""
    if values is None:
        return ""
    return hashlib.sha256(f"{values.shape}".encode() + np.ascontiguousarray(values).tobytes()).hexdigest()


def _whole(name: str, value: Any) -> Any:
    """int32 of an array or list of integers; None of None."""
    if value is None:
        return None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        array = np.empty(0, object)
    if array.dtype.kind not in "iu" or (array.size and max(-int(array.min()), int(array.max())) > MOST):
        raise PromptError(f"{name} is {_described(value)}; use integers of 32 bits")
    return array.astype(np.int32)


def _described(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else shown(value)
