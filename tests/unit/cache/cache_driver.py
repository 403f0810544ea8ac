"""A stand-in for a model: keys, values and queries that depend on token, layer and position alone.

It drives real sequence caches the way an engine does, so that what differs between two runs can only come from the
cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thrifty import registry
from thrifty.arrays import Floats, Integers, softmax
from thrifty.cache.model_info import ModelInfo, TokenClasses
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache

CLASSES = TokenClasses(special=frozenset(range(20)), punctuation=frozenset(range(20, 120)))
"""Of the 1000 tokens that `prompt` draws from."""


def rope(head_dim: int, layer: int, positions: Integers) -> tuple[Floats, Floats]:
    """Plain RoPE tables, theta 10000, the same for every layer."""
    half = head_dim // 2
    angles = positions[:, None] * 10000.0 ** (-np.arange(half) / half)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: Floats, positions: Integers) -> Floats:
    """x [n, heads, d] at `positions`, half-split."""
    cos, sin = rope(x.shape[-1], 0, positions)
    cos, sin = cos[:, None], sin[:, None]
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def model_info(
    *,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    windows: Sequence[int | None] | None = None,
    format: str = "f32",
    chunk: int = 128,
) -> ModelInfo:
    windows = tuple(windows) if windows is not None else (None,) * layers
    ranked = sum(window is None for window in windows)
    scores = np.random.default_rng(7).random((ranked, heads), np.float32) ** 3
    return ModelInfo(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        windows=windows,
        format=format,
        chunk=chunk,
        version="weights-1",
        rotation=lambda layer, positions: rope(head_dim, layer, positions),
        classes=lambda: CLASSES,
        head_scores={"r": scores, "r2": scores[::-1], "kvzip": scores[:, ::-1]},
        instruct=lambda text, quoted: (2000 + len(text), *quoted, 2001),
    )


def noise(seed: int, *shape: int) -> Floats:
    """fp32, normal."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@functools.lru_cache(maxsize=100_000)
def _row(model: ModelInfo, seed: int) -> tuple[Floats, Floats, Floats]:
    """One token's query, key and value."""
    every = noise(seed, model.heads + 2 * model.kv_heads, model.head_dim)
    query, key, value = np.split(every, (model.heads, model.heads + model.kv_heads))
    return query, key, value


@dataclass
class Driver:
    """Rows of every layer for tokens at positions; attention through a cache; the outputs of each step kept."""

    model: ModelInfo
    seed: int = 0

    def rows(self, layer: int, tokens: Sequence[int], start: int) -> tuple[Floats, Floats, Floats]:
        """query [n, heads, d], key, value [n, kv_heads, d], rotated, fp32."""
        model = self.model
        found = [
            _row(model, hash((self.seed, layer, int(token), start + offset)) % (1 << 62))
            for offset, token in enumerate(tokens)
        ]
        positions = np.arange(start, start + len(tokens))
        query, key, value = (np.stack(part) for part in zip(*found, strict=True))
        return rotate(query * 1.5, positions), rotate(key, positions), value

    def prefill(self, cache: SequenceCache, tokens: Sequence[int], chunk: int = 64) -> list[Floats]:
        """Prompt tokens beyond what the cache holds. Returns the outputs of the last row, by layer."""
        start, n = cache.length, len(tokens) - cache.length
        told = 0 if start == cache.hit else start
        cache.remember(tokens[told:], told)
        last: list[Floats] = []
        if cache.layer_major:
            for layer in range(self.model.layers):
                cache.begin_layer(layer, n)
                for first in range(start, start + n, chunk):
                    out = self._append(cache, layer, tokens[first : min(first + chunk, start + n)], first)
                last.append(out[-1])
                cache.seal_layer(layer)
            cache.commit(n)
            return last
        for first in range(start, start + n, chunk):
            part = tokens[first : min(first + chunk, start + n)]
            last = [one[-1] for one in self.step(cache, part, decodes=False)]
        if cache.rehearses is not None:
            self.rehearse(cache, tokens, chunk)
        return last

    def rehearse(self, cache: SequenceCache, tokens: Sequence[int], chunk: int) -> None:
        """What a policy that rehearses wants to see of a committed prompt, then its edits."""
        run, start = cache.begin_rehearsals(tokens), cache.length
        for piece in run.pieces:
            run.begin(piece)
            for layer in range(self.model.layers):
                for first in range(0, len(piece.tokens), chunk):
                    part = piece.tokens[first : first + chunk]
                    self._append(cache, layer, part, start + first)
                    run.observe(layer, self.rows(layer, part, start + first)[0])
            run.end()
        cache.complete_prompt()

    def step(
        self, cache: SequenceCache, tokens: Sequence[int], commit: int | None = None, decodes: bool = True
    ) -> list[Floats]:
        """One step of some rows. commit: how many are accepted; decodes: whether they are rows of an answer. Returns
        the outputs [n, heads, d] of every layer.
        """
        start = cache.length
        cache.reserve(len(tokens))
        found = [self._append(cache, layer, tokens, start, decodes) for layer in range(self.model.layers)]
        accepted = len(tokens) if commit is None else commit
        if accepted < len(tokens):
            cache.truncate(len(tokens) - accepted)
        cache.remember(tokens[:accepted], start)
        cache.commit(accepted)
        return found

    def _append(
        self, cache: SequenceCache, layer: int, tokens: Sequence[int], start: int, decodes: bool = False
    ) -> Floats:
        query, key, value = self.rows(layer, tokens, start)
        cache.append(layer, key, value)
        return cache.attend(layer, query, np.arange(start, start + len(tokens)), decodes=decodes)

    def dense(self, layer: int, tokens: Sequence[int], rows: int) -> Floats:
        """The newest rows' outputs by plain softmax attention over everything: [rows, heads, d]."""
        query, key, value = self.rows(layer, tokens, 0)
        window = self.model.windows[layer]
        return attention(self.model, query[-rows:], key, value, window)


def slow_groups(x: Floats, bits: int, axis: int, size: int = 32) -> Floats:
    """Asymmetric rounding of groups of `size` along `axis` (KIVI, §3.1), scale and minimum in float16."""
    result = x.copy()
    for start in range(0, x.shape[axis], size):
        place = [slice(None)] * x.ndim
        place[axis] = slice(start, start + size)
        part = result[tuple(place)]
        low, high = _half(part.min(axis, keepdims=True)), part.max(axis, keepdims=True)
        scale = _half((high - low) / (2**bits - 1))
        part[...] = np.clip(np.round((part - low) / scale), 0, 2**bits - 1) * scale + low
    return result


def _half(x: Floats) -> Floats:
    return x.astype(np.float16).astype(np.float32)


def attention(model: ModelInfo, query: Floats, key: Floats, value: Floats, window: int | None = None) -> Floats:
    """Plain causal attention of the newest rows: query [n, heads, d], key, value [slots, kv_heads, d]."""
    n, slots = len(query), len(key)
    key, value = (np.repeat(x, model.group, axis=1).swapaxes(0, 1) for x in (key, value))
    logits = query.swapaxes(0, 1) @ key.swapaxes(1, 2) * model.scale
    place = np.arange(slots)[None]
    last = np.arange(slots - n, slots)[:, None]
    hidden = place > last
    if window is not None:
        hidden |= place <= last - window
    logits[:, hidden] = -math.inf
    return (softmax(logits) @ value).swapaxes(0, 1)


def prompt(n: int, seed: int = 0) -> list[int]:
    """n random tokens."""
    tokens: list[int] = np.random.default_rng(seed).integers(0, 1000, n).tolist()
    return tokens


def contents(cache: SequenceCache) -> list[list[tuple[Floats, Floats, Integers]]]:
    """Sealed keys, values, positions of every layer and head."""
    found = []
    for layer in range(cache.model.layers):
        view = cache.view(layer)
        found.append([(view.keys(head), view.values(head), view.positions(head)) for head in range(view.kv_heads)])
    return found


def same(left: SequenceCache, right: SequenceCache) -> None:
    """Assert that two caches hold the same bits."""
    assert left.length == right.length
    for one, other in zip(contents(left), contents(right), strict=True):
        for mine, theirs in zip(one, other, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert np.array_equal(a, b)


def compressed(model: ModelInfo, tokens: Sequence[int], technique: str, **options: Any) -> SequenceCache:
    """A sequence whose prompt, these tokens, was compressed by one technique."""
    sequence = Cache(model).create([registry.build("cache", {"technique": technique} | options)])
    Driver(model).prefill(sequence, tokens)
    return sequence
