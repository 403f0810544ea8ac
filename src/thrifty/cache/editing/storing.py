"""Storing: slots cut out of their spans and held in other formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.cache.slots.builder import Builder, NewSpans, release_all
from thrifty.cache.slots.span import Span
from thrifty.errors import RecipeError


@dataclass(frozen=True)
class Piece:
    """Slots start..stop of every head (negative: from its end, None: its end) to hold as `format`, "" for as it is."""

    start: int
    stop: int | None
    format: str

    def resolve(self, count: int) -> tuple[int, int]:
        """start and stop of a head with `count` slots."""
        start = self.start + count if self.start < 0 else self.start
        stop = count if self.stop is None else self.stop + count if self.stop < 0 else self.stop
        return max(0, min(start, count)), max(0, min(stop, count))


def store(
    builder: Builder, layer: int, spans: Sequence[Span], pieces: Sequence[Piece], heads: Sequence[int]
) -> list[Span]:
    """Cut spans at the borders of `pieces` (for these heads) and hold what is inside in the pieces' formats."""
    kv_heads = builder.model.of(layer).kv_heads
    counts = [sum(span.count(layer, head) for span in spans) for head in range(kv_heads)]
    ranges = {head: [(*piece.resolve(counts[head]), piece.format) for piece in pieces] for head in heads}
    first = [0] * kv_heads
    dropped: list[Span] = []
    with NewSpans(spans) as result:
        for span in spans:
            cuts = {}
            for head in span.segment.heads:
                count = span.count(layer, head)
                cuts[head] = _cut(ranges.get(head, []), first[head], count)
                first[head] += count
            if all(_untouched(span, cut) for cut in cuts.values()):
                result.append(span)
                continue
            alike = all(cut == next(iter(cuts.values())) for cut in cuts.values())
            if span.segment.parent is not None:
                raise RecipeError("slots of a quantised segment with evicted slots cannot be stored again")
            groups = [tuple(cuts)] if alike else [(head,) for head in cuts]
            for group in groups:
                for start, stop, format in cuts[group[0]]:
                    result.append(builder.copy(span, (layer,), group, start, stop, format or span.segment.format))
            dropped.append(span)
    release_all(dropped)
    return result


def _cut(ranges: list[tuple[int, int, str]], first: int, count: int) -> list[tuple[int, int, str | None]]:
    """The parts of a span of `count` slots from `first`: (start, stop, format), None where no piece lies."""
    parts: list[tuple[int, int, str | None]] = []
    done = 0
    for start, stop, format in sorted(ranges):
        start, stop = max(start - first, done), min(stop - first, count)
        if start >= stop:
            continue
        if start > done:
            parts.append((done, start, None))
        parts.append((start, stop, format))
        done = stop
    if done < count:
        parts.append((done, count, None))
    return parts


def _untouched(span: Span, parts: list[tuple[int, int, str | None]]) -> bool:
    """Whether cutting changes nothing: one part, in the format that it has."""
    return len(parts) <= 1 and all(format in (None, "", span.segment.format) for _, _, format in parts)
