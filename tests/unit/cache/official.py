"""What the authors' codes do, written anew step by step in NumPy, as a yardstick that shares nothing with the policies.

Read from: FasterDecoding/SnapKV and FFY0/AdaKV (`snapkv_utils.py`), Zefan-Cai/KVCache-Factory (`pyramidkv_utils.py`),
FYYFU/HeadKV (`snapkv_utils.py`), FMInference/H2O (`utils_real_drop`), mit-han-lab/streaming-llm (`kv_cache.py`),
snu-mllab/KVzip (`attention/score.py`), jy-yuan/KIVI (`new_pack.py`, `llama_kivi.py`). Whole numbers are cut where those
codes cut them. Arrays: query [n, heads, d], key [n, kv_heads, d], fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from thrifty.arrays import Array, Floats


def observed(query: Floats, key: Floats, window: int) -> Array:
    """[heads, n − window] fp64: the mean attention of the newest `window` queries, causal among themselves."""
    n, heads, width = query.shape
    group = heads // key.shape[1]
    means = np.zeros((heads, n - window))
    for head in range(heads):
        logits = query[n - window :, head].astype(np.float64) @ key[:, head // group].T.astype(np.float64)
        logits /= math.sqrt(width)
        for row in range(window):
            logits[row, n - window + row + 1 :] = -np.inf
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        means[head] = weights[:, : n - window].mean(axis=0)
    return means


def pooled(scores: Array, kernel: int, pooling: str) -> Array:
    """[heads, n]: one-dimensional pooling of stride 1 with kernel // 2 zeros (or nothing, for the maximum) around."""
    half = kernel // 2
    result = np.zeros_like(scores)
    for place in range(scores.shape[1]):
        near = scores[:, max(0, place - half) : place + half + 1]
        result[:, place] = near.max(axis=1) if pooling == "max" else near.sum(axis=1) / kernel
    return result


def window_scores(query: Floats, key: Floats, window: int, kernel: int, pooling: str) -> Array:
    """[kv_heads, n − window]: AdaKV's with `gqa_support`, the mean over a query group and then pooling; where every KV
    head has one query head, SnapKV's."""
    means = observed(query, key, window)
    by_group = means.reshape(key.shape[1], -1, means.shape[1]).mean(axis=1)
    return pooled(by_group, kernel, pooling)


def top(scores: Array, count: int) -> list[int]:
    """Places of the `count` largest, rising."""
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())


def snapkv(scores: Array, capacity: int, window: int) -> list[list[int]]:
    """Kept positions of every head: all where the prompt is shorter than the capacity."""
    n = scores.shape[1] + window
    if n < capacity:
        return [list(range(n))] * len(scores)
    newest = list(range(n - window, n))
    return [top(own, capacity - window) + newest for own in scores]


def ada_kv(scores: Array, capacity: int, window: int, floor_alpha: float) -> list[list[int]]:
    """Kept positions of every head: the layer's best scores say how many, a floor is even."""
    heads, before = scores.shape
    base = capacity - window
    newest = list(range(before, before + window))
    if base > before:
        return [[*range(before), *newest]] * heads
    floor = int(base * floor_alpha)
    best = np.argsort(-scores.reshape(-1), kind="stable")[: heads * base] // before
    counts = [int((best == head).sum()) for head in range(heads)]
    kept = [round(count * (1 - floor_alpha) + floor) for count in counts]
    return [top(own, number) + newest for own, number in zip(scores, kept, strict=True)]


def pyramid(layers: int, n: int, capacity: int, window: int, beta: int) -> list[int]:
    """Slots of every layer beside its window, as KVCache-Factory counts them: whole steps, even where short of room."""
    least = (capacity - window) // beta
    most = (capacity - window) * 2 - least
    if most >= n - window:
        most = n - window
        least = (capacity - window) * 2 - most
    step = (most - least) // (layers - 1)
    if n < (capacity - window) * 2:
        return [capacity - window] * layers
    return [most - layer * step for layer in range(layers)]


def headkv(scores: Sequence[Sequence[float]], capacity: int, window: int, beta: float) -> list[list[int]]:
    """Slots of every query head beside its window: its share of the pool and the even rest, rounded head by head."""
    flat = np.array(scores, np.float64)
    share = flat / flat.sum()
    base = capacity - window
    pool = (base // beta) * flat.size
    even = base - base // beta
    rows: list[list[int]] = np.round(share * pool + even).astype(int).tolist()
    return rows


def h2o(query: Floats, key: Floats, heavy: int, recent: int) -> list[list[int]]:
    """Kept positions of every head (one query head each) when a prompt ends: column sums of its whole attention."""
    n, heads, width = query.shape
    kept = []
    for head in range(heads):
        sums = np.zeros(n)
        for row in range(n):
            logits = (key[: row + 1, head] @ query[row, head] / math.sqrt(width)).astype(np.float64)
            weights = np.exp(logits - logits.max())
            sums[: row + 1] += weights / weights.sum()
        kept.append(top(sums[: n - recent], heavy) + list(range(n - recent, n)))
    return kept


def streaming(n: int, start: int, recent: int) -> list[int]:
    """Kept tokens of n: all where they fit, else the first and the newest."""
    return list(range(n)) if n <= start + recent else [*range(start), *range(n - recent, n)]


def kvzip(scores: Array, ratio: float) -> list[int]:
    """Kept places of all scores together, strictly above the threshold that the ratio's last one sets."""
    falling = np.sort(scores.reshape(-1))[::-1]
    threshold = falling[max(int(len(falling) * ratio) - 1, 0)]
    places: list[int] = np.flatnonzero(scores.reshape(-1) > threshold).tolist()
    return places


def kivi_codes(numbers: Floats, bits: int, group: int) -> Array:
    """[rows, n] fp64, each row's groups of `group` neighbours as codes between its least and its greatest, and back."""
    rows, n = numbers.shape
    stored = np.zeros((rows, n))
    for row in range(rows):
        for first in range(0, n, group):
            own = numbers[row, first : first + group].astype(np.float64)
            least, scale = own.min(), (own.max() - own.min()) / (2**bits - 1)
            codes = np.clip(np.rint((own - least) / scale), 0, 2**bits - 1) if scale else np.zeros_like(own)
            stored[row, first : first + group] = codes * scale + least
    return stored


def kivi_exact_keys(n: int, residual: int) -> int:
    """Keys of a prompt of n tokens that stay exact."""
    return n % residual
