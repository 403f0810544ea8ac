"""A parked sequence as plain facts and arrays, and back: what a file of a session holds.

Facts are JSON; arrays are named, any number type. Segments are listed once each, those that faces (`with_holes`) show
before the faces. What is read back may come from anybody: sizes and places are checked before they are used.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty.arrays import Array
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.slots.builder import release_all
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.span import Span
from thrifty.cache.watching.token_ids import _Edited
from thrifty.errors import PromptError, StorageError
from thrifty.formats.kv import FORMATS, PAGE, slab_bytes

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy
    from thrifty.cache.pool import Cache

Arrays = dict[str, Array]


def freeze(sequence: SequenceCache) -> tuple[dict[str, Any], Arrays]:
    """Facts and arrays of a parked sequence; arrays share its memory, or were read from disk.

    Raises PromptError for a model with recurrent layers, and where a policy attends to some of the slots.
    """
    if sequence.states is not None:
        raise PromptError(
            "sessions of a model with recurrent layers cannot be saved: its states have no form in a file"
        )
    if sequence.spans.selected:
        raise PromptError("a session of which some slots are not attended to cannot be saved")
    arrays: Arrays = {}
    tail = [pages[0] for pages in sequence.tail.pages] if sequence.tail.rows else []
    order = _ordered([*(span.segment for spans in sequence.spans for span in spans), *tail])
    places = {id(segment): place for place, segment in enumerate(order)}
    facts = {
        "length": sequence.length,
        "prompt": sequence.prompt,
        "due": list(sequence.schedule._due),
        "let_go": list(sequence.spans.let_go),
        "tail_rows": sequence.tail.rows,
        "tail": [places[id(page)] for page in tail],
        "segments": [_segment_facts(segment, place, places, arrays) for place, segment in enumerate(order)],
        "spans": [[[places[id(span.segment)], span.tokens, span.source] for span in spans] for spans in sequence.spans],
    }
    return facts | _collected(sequence, arrays), arrays


def thaw(cache: Cache, policies: Sequence[CachePolicy], facts: Mapping[str, Any], arrays: Arrays) -> SequenceCache:
    """The sequence, parked, with its segments in memory. Raises StorageError for facts that cannot be true, BudgetError
    where they do not fit; nothing is taken then.
    """
    sequence = SequenceCache(cache.tiers, cache.model, policies, siblings=cache.sequences)
    made: list[Segment] = []
    try:
        for own in facts["segments"]:
            made.append(_segment(sequence, own, made, arrays))
        _put_spans(sequence, facts, made)
        _put_collected(sequence, facts, arrays)
        sequence.length = sequence.hit = int(facts["length"])
        sequence.prompt = int(facts["prompt"])
        sequence.tail.number(sequence.length)
        _check(len(facts["due"]) == len(sequence.policies), "as many dates as techniques")
        sequence.schedule._due = [int(due) for due in facts["due"]]
        sequence.schedule.next = min(sequence.schedule._due, default=1 << 62)
        sequence.park()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as error:
        sequence.free()
        raise StorageError(f"its facts contradict each other ({type(error).__name__}: {error})") from error
    except BaseException:
        sequence.free()
        raise
    finally:
        for segment in made:
            segment.release()
    return sequence


def _ordered(segments: Sequence[Segment]) -> list[Segment]:
    """Each once, owners before their faces."""
    order: dict[int, Segment] = {}
    for segment in segments:
        for each in (segment.owner, segment):
            order.setdefault(id(each), each)
    return list(order.values())


def _segment_facts(segment: Segment, place: int, places: Mapping[int, int], arrays: Arrays) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "layers": list(segment.layers),
        "heads": list(segment.heads),
        "capacity": segment.capacity,
        "format": segment.format,
        "tokens": segment.tokens,
        "owner": None if segment.parent is None else places[id(segment.parent)],
        "first": segment.positions if isinstance(segment.positions, int) else None,
    }
    if not isinstance(segment.positions, int):
        arrays[f"{place}.positions"] = segment.positions
    if segment.bias is not None:
        arrays[f"{place}.bias"] = segment.bias
    if segment.first_keys is not None:
        arrays[f"{place}.first_keys"], arrays[f"{place}.first_positions"] = segment.first_keys
    if segment.parent is None:
        arrays[f"{place}.slabs"] = np.ascontiguousarray(segment.slabs())
    return facts


def _collected(sequence: SequenceCache, arrays: Arrays) -> dict[str, Any]:
    """Column sums, token ids and notes."""
    collector = sequence.collector
    for layer, heads in collector.sums().items():
        for head, sums in enumerate(heads):
            arrays[f"sums.{layer}.{head}"] = sums
    arrays["history"] = np.array(collector._tokens._history, np.int32)
    edited = {}
    for layer, own in collector._tokens._edited.items():
        edited[str(layer)] = own.stop
        for head, ids in enumerate(own.heads):
            arrays[f"edited.{layer}.{head}"] = ids
    notes = [[policy, layer, dict(own)] for (policy, layer), own in collector._notes.items() if own]
    return {"edited": edited, "notes": notes, "prefilling": collector.prefilling, "sums": sorted(collector.sums())}


def _segment(sequence: SequenceCache, facts: Mapping[str, Any], made: Sequence[Segment], arrays: Arrays) -> Segment:
    """One segment with its bytes, in memory."""
    model, place = sequence.model, len(made)
    layers, heads = tuple(map(int, facts["layers"])), tuple(map(int, facts["heads"]))
    capacity, tokens, form = int(facts["capacity"]), int(facts["tokens"]), str(facts["format"])
    _check(form in FORMATS, f"segment {place} has the unknown format {form!r:.40}")
    _check(0 < len(set(layers)) == len(layers) and set(layers) <= set(range(model.layers)), "layers")
    widths = model.of(layers[0])
    _check(len(model.alike(layers)) == 1, "layers of different widths")
    _check(0 < len(set(heads)) == len(heads) and set(heads) <= set(range(widths.kv_heads)), "heads")
    _check(capacity > 0 and capacity % PAGE == 0 and 0 <= tokens <= capacity, f"segment {place} has {tokens} tokens")
    if facts["owner"] is not None:
        owner = made[int(facts["owner"])]
        bias = _array(arrays, f"{place}.bias", (1, len(heads), owner.capacity))
        _check(heads == owner.heads and layers[0] in owner.layers, "a face of another segment")
        return owner.with_holes(layers[0], [np.flatnonzero(row > -np.inf) for row in bias[0]], tokens)
    nbytes = slab_bytes(form, capacity, widths.head_dim)
    slabs = _array(arrays, f"{place}.slabs", (len(layers) * len(heads), nbytes))
    segment = Segment(sequence.tiers, layers, heads, capacity, form, widths.head_dim)
    try:
        segment.tokens = tokens
        segment.slabs()[...] = slabs
        if facts["first"] is not None:
            segment.positions = int(facts["first"])
        else:
            segment.set_positions(list(_array(arrays, f"{place}.positions", (len(heads), tokens)).astype(np.int64)))
        if f"{place}.bias" in arrays:
            bias = _array(arrays, f"{place}.bias", (len(layers), len(heads), capacity))
            for row, layer in enumerate(layers):
                for column, head in enumerate(heads):
                    segment.set_bias(layer, head, bias[row, column])
        if f"{place}.first_keys" in arrays:
            keys = _array(arrays, f"{place}.first_keys", (len(layers), len(heads), tokens, widths.head_dim))
            segment.set_first_keys(keys.copy(), _array(arrays, f"{place}.first_positions", (tokens,)).copy())
    except BaseException:
        segment.release()
        raise
    return segment


def _put_spans(sequence: SequenceCache, facts: Mapping[str, Any], made: Sequence[Segment]) -> None:
    """The lists of spans, and the open page of every group. `made` keeps its own references."""
    _check(len(facts["spans"]) == len(facts["let_go"]) == sequence.model.layers, "layers")
    for layer, own in enumerate(facts["spans"]):
        spans: list[Span] = []
        for place, tokens, source in own:
            segment = made[int(place)]
            _check(0 < tokens <= segment.tokens and (layer if source is None else source) in segment.layers, "spans")
            spans.append(Span(segment.retain(), int(tokens), source))
        try:
            sequence.spans.add(layer, *spans)
        except BaseException:
            release_all(spans)
            raise
        sequence.spans.skip(layer, int(facts["let_go"][layer]))
    tail = [made[int(place)] for place in facts["tail"]]
    rows = int(facts["tail_rows"])
    _check(0 <= rows < PAGE and len(tail) == (len(sequence.tail.groups) if rows else 0), "the open page")
    for group, pages, page in zip(sequence.tail.groups, sequence.tail.pages, tail, strict=False):
        _check(page.layers == group.layers and page.capacity == PAGE and not page.quantised, "the open page")
        pages.append(page.retain())
    sequence.tail.rows = rows


def _put_collected(sequence: SequenceCache, facts: Mapping[str, Any], arrays: Arrays) -> None:
    collector, model = sequence.collector, sequence.model
    collector.prefilling = bool(facts["prefilling"])
    history = arrays["history"]
    collector._tokens._history = array("i", history.astype(np.int32).tolist())
    for layer, stop in facts["edited"].items():
        heads = range(model.of(int(layer)).kv_heads)
        own = tuple(arrays[f"edited.{layer}.{head}"].astype(np.int32) for head in heads)
        collector._tokens._edited[int(layer)] = _Edited(own, int(stop))
    for policy, layer, notes in facts["notes"]:
        collector._notes[int(policy), int(layer)] = {str(name): tuple(own) for name, own in notes.items()}
    sums = {}
    for layer in map(int, facts["sums"]):
        sums[layer] = [arrays[f"sums.{layer}.{head}"].copy() for head in range(model.of(layer).kv_heads)]
    collector.take(sums)


def _array(arrays: Arrays, name: str, shape: tuple[int, ...]) -> Any:
    found = arrays[name]
    _check(found.shape == shape, f"{name} has the shape {found.shape} and not {shape}")
    return found


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
