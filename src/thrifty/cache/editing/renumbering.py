"""Renumbering: keys that were rotated at one position, rotated to another.

RoPE turns each pair (x₁, x₂) of a key by the angle position·frequency and scales it by the attention factor that some
scalings carry: R(p) = a·[[cos pθ, −sin pθ], [sin pθ, cos pθ]]. Going from p to q multiplies by R(q)·R(p)⁻¹, a turn by
(q−p)θ without scale, whose cosine and sine follow from the tables of both positions:
cos = (c_q·c_p + s_q·s_p)/a², sin = (s_q·c_p − c_q·s_p)/a², with a² = c_p² + s_p².
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.editing.storing import Piece, store
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.slots.builder import Builder
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.span import Span
from thrifty.errors import RecipeError
from thrifty.formats import kv_batch
from thrifty.formats.kv import PAGE


def renumber(
    builder: Builder, layer: int, spans: Sequence[Span], start: int, stop: int, positions: Integers
) -> list[Span]:
    """Rotate the keys of slots start..stop (the same for every head) to `positions` int64 [stop-start]."""
    kv_heads = builder.model.of(layer).kv_heads
    cut = store(builder, layer, spans, [Piece(start, stop, "")], range(kv_heads))
    first = [0] * kv_heads
    result = []
    for span in cut:
        here = first[span.segment.heads[0]]
        for head in span.segment.heads:
            first[head] += span.count(layer, head)
        if here < start or here + span.tokens > stop or not span.tokens:
            result.append(span)
            continue
        result.append(turn(builder, (layer,), [span], positions[here - start : here - start + span.tokens]))
        span.segment.release()
    return result


def turn(builder: Builder, layers: tuple[int, ...], spans: Sequence[Span], positions: Integers) -> Span:
    """One span a layer, alike but for their contents, as one new segment with keys rotated to `positions`.

    Always from the keys that were first written, so that turning often is as exact as turning once. The spans keep
    their references.
    """
    heads, tokens, format = spans[0].segment.heads, spans[0].tokens, spans[0].segment.format
    new = builder.new(layers, heads, tokens, format)
    try:
        target = new.slabs()
        turned, first = [], []
        for row, (layer, span) in enumerate(zip(layers, spans, strict=True)):
            keys, before = _first_keys(span, span.layer(layer))
            first.append(keys)
            turned.append(rotate_again(builder.model, layer, keys, before, positions))
            part = target[row * len(heads) : (row + 1) * len(heads)]
            old = span.segment
            slabs = old.slabs([span.layer(layer)])
            kv_batch.copy_pages(slabs, part, format, old.capacity, new.capacity, old.head_dim, 0)
            if old.bias is not None:
                for head in heads:
                    new.set_bias(layer, head, span.bias(layer, head))
        _write_keys(new, np.concatenate(turned))
        new.set_positions([positions] * len(heads))
        new.set_first_keys(np.stack(first), before)
    except BaseException:
        new.release()
        raise
    return Span(new, tokens)


def rotate_again(model: ModelInfo, layer: int, keys: Floats, before: Integers, after: Integers) -> Floats:
    """keys fp32 [..., n, head_dim] rotated at positions `before` int64 [n] → rotated at `after`, fp32.

    Channels beyond the rotated dimension pass through. Half-split convention: channel i pairs with i + dimension/2.
    Raises RecipeError where the model brought no RoPE tables.
    """
    if model.rotation is None:
        raise RecipeError("this model has no RoPE tables to renumber with: use a policy that keeps original positions")
    cos_before, sin_before = model.rotation(layer, before)
    cos_after, sin_after = model.rotation(layer, after)
    scale = np.square(cos_before) + np.square(sin_before)
    cos = (cos_after * cos_before + sin_after * sin_before) / scale
    sin = (sin_after * cos_before - cos_after * sin_before) / scale
    half = cos.shape[-1]
    first, second, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin, rest), axis=-1)


def _write_keys(new: Segment, keys: Floats) -> None:
    """Overwrite the keys [layers·heads, tokens, d] of all slots."""
    if not new.quantised:
        held, _ = kv_batch.plain(new.slabs(), new.format, new.capacity, new.head_dim)
        for start in range(0, new.tokens, PAGE):
            part = keys[:, start : start + PAGE].swapaxes(1, 2)
            held[:, start // PAGE, :, : part.shape[2]] = part.astype(held.dtype)
        return
    for layer in new.layers:
        for head in new.heads:
            row = new.layers.index(layer) * len(new.heads) + new.heads.index(head)
            values = new.read(layer, head)[1]
            new.write(layer, head, 0, keys[row], values)


def _first_keys(span: Span, source: int) -> tuple[Floats, Integers]:
    """Keys [heads, tokens, d] fp32 of a layer as they were first written, and their positions."""
    old = span.segment
    if old.first_keys is not None:
        return old.first_keys[0][old.layers.index(source), :, : span.tokens], old.first_keys[1][: span.tokens]
    keys = np.stack([old.read(source, head, span.tokens)[0] for head in old.heads])
    return keys, old.positions_of(old.heads[0], span.tokens)
