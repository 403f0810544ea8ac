"""A stand-in for a model: keys, values and queries that depend on token, layer and position alone.

It drives real sequence caches the way an engine does, so that what differs between two runs can only come from the
cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.cache.model_info import ModelInfo, TokenClasses
from thrifty.cache.sequence import SequenceCache

CLASSES = TokenClasses(special=frozenset(range(20)), punctuation=frozenset(range(20, 120)))
"""Of the 1000 tokens that `prompt` draws from."""


def rope(head_dim: int, layer: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Plain RoPE tables, theta 10000, the same for every layer."""
    half = head_dim // 2
    frequencies = 10000.0 ** (-torch.arange(half).double() / half)
    angles = positions.double()[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """x [n, heads, d] at `positions`, half-split."""
    cos, sin = rope(x.shape[-1], 0, positions)
    cos, sin = cos[:, None], sin[:, None]
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


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
    scores = torch.rand(ranked, heads, generator=torch.Generator().manual_seed(7)) ** 3
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
        head_scores={"r": scores, "r2": scores.flip(0)},
        instruct=lambda text, quoted: (2000 + len(text), *quoted, 2001),
    )


@functools.lru_cache(maxsize=100_000)
def _row(model: ModelInfo, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """One token's query, key and value."""
    every = torch.randn(model.heads + 2 * model.kv_heads, model.head_dim, generator=torch.Generator().manual_seed(seed))
    return tuple(every.split((model.heads, model.kv_heads, model.kv_heads)))  # type: ignore[return-value]


@dataclass
class Driver:
    """Rows of every layer for tokens at positions; attention through a cache; the outputs of each step kept."""

    model: ModelInfo
    seed: int = 0

    def rows(self, layer: int, tokens: Sequence[int], start: int) -> tuple[Tensor, Tensor, Tensor]:
        """query [n, heads, d], key, value [n, kv_heads, d], rotated, fp32."""
        model = self.model
        found = [
            _row(model, hash((self.seed, layer, int(token), start + offset)) % (1 << 62))
            for offset, token in enumerate(tokens)
        ]
        positions = torch.arange(start, start + len(tokens))
        query, key, value = (torch.stack(part) for part in zip(*found, strict=True))
        return rotate(query * 1.5, positions), rotate(key, positions), value

    def prefill(self, cache: SequenceCache, tokens: Sequence[int], chunk: int = 64) -> list[Tensor]:
        """Prompt tokens beyond what the cache holds. Returns the outputs of the last row, by layer."""
        start, n = cache.length, len(tokens) - cache.length
        told = 0 if start == cache.hit else start
        cache.remember(tokens[told:], told)
        last: list[Tensor] = []
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
            last = [one[-1] for one in self.step(cache, tokens[first : min(first + chunk, start + n)])]
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

    def step(self, cache: SequenceCache, tokens: Sequence[int], commit: int | None = None) -> list[Tensor]:
        """One step of some rows. commit: how many are accepted. Returns the outputs [n, heads, d] of every layer."""
        start = cache.length
        cache.reserve(len(tokens))
        found = [self._append(cache, layer, tokens, start) for layer in range(self.model.layers)]
        accepted = len(tokens) if commit is None else commit
        if accepted < len(tokens):
            cache.truncate(len(tokens) - accepted)
        cache.remember(tokens[:accepted], start)
        cache.commit(accepted)
        return found

    def _append(self, cache: SequenceCache, layer: int, tokens: Sequence[int], start: int) -> Tensor:
        query, key, value = self.rows(layer, tokens, start)
        cache.append(layer, key, value)
        return cache.attend(layer, query, torch.arange(start, start + len(tokens)))

    def dense(self, layer: int, tokens: Sequence[int], rows: int) -> Tensor:
        """The newest rows' outputs by plain softmax attention over everything: [rows, heads, d]."""
        query, key, value = self.rows(layer, tokens, 0)
        window = self.model.windows[layer]
        return attention(self.model, query[-rows:], key, value, window)


def slow_groups(x: Tensor, bits: int, dim: int, size: int = 32) -> Tensor:
    """Asymmetric rounding of groups of `size` along `dim` (KIVI, §3.1), scale and minimum in float16."""
    found = x.clone()
    for start in range(0, x.shape[dim], size):
        part = found.narrow(dim, start, min(size, x.shape[dim] - start))
        low, high = part.amin(dim, keepdim=True).half().float(), part.amax(dim, keepdim=True)
        scale = ((high - low) / (2**bits - 1)).half().float()
        part.copy_(((part - low) / scale).round().clamp(0, 2**bits - 1) * scale + low)
    return found


def attention(model: ModelInfo, query: Tensor, key: Tensor, value: Tensor, window: int | None = None) -> Tensor:
    """Plain causal attention of the newest rows: query [n, heads, d], key, value [slots, kv_heads, d]."""
    n, slots = len(query), len(key)
    key = key.repeat_interleave(model.group, dim=1)
    value = value.repeat_interleave(model.group, dim=1)
    logits = torch.einsum("nhd,shd->hns", query, key) * model.scale
    place = torch.arange(slots)[None]
    last = torch.arange(slots - n, slots)[:, None]
    hidden = place > last
    if window is not None:
        hidden |= place <= last - window
    weights = logits.masked_fill(hidden[None], -math.inf).softmax(dim=-1)
    return torch.einsum("hns,shd->nhd", weights, value)


def prompt(n: int, seed: int = 0) -> list[int]:
    """n random tokens."""
    return torch.randint(0, 1000, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def contents(cache: SequenceCache) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
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
                assert torch.equal(a, b)
