"""The bytes that a sequence will take at most, before it runs: what admission reserves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thrifty.cache.composition import offloading, rehearsing, wanted
from thrifty.cache.model_info import LayerGroup, ModelInfo, Widths
from thrifty.cache.policy import BLOCK, CachePolicy
from thrifty.cache.rehearsals import working_bytes
from thrifty.cache.rehearsing_policy import RehearsingPolicy
from thrifty.cache.slots.states import slab_bytes
from thrifty.cache.slots.streaming import BUFFERS
from thrifty.cache.tree import first_page
from thrifty.formats import kv
from thrifty.formats.kv import PAGE
from thrifty.storage.disk import BLOCK as DISK_BLOCK

RUN = 4096
"""Arena runs are whole pages of the system."""


@dataclass(frozen=True)
class Footprint:
    """Upper bounds of arena and index bytes. peak: at any moment. steady: between steps, at `total` tokens.

    decoding: at any moment after the prompt was compressed; None where it is the peak.
    """

    peak_bytes: int
    steady_bytes: int
    decoding_bytes: int | None = None


def footprint(policies: Sequence[CachePolicy], model: ModelInfo, prompt: int, total: int) -> Footprint:
    """Upper bounds of arena and index bytes for a prompt grown to `total` tokens, policies acting in order.

    Counted: recurrent states, one layer's full-precision scratch while the prompt is compressed layer by layer, the old
    and the new form of what an edit rewrites, a partly used page at every cut, whole arena pages, positions,
    statistics. A policy that rehearses holds the whole prompt in full, with the rows that it forces or with what it
    keeps.
    """
    bounds = _page_bounds(policies, model, total)
    if any(policy.causal for policy in policies):
        held = _causal(policies, model, prompt, total)
        decoding = None if held.decoding_bytes is None else held.decoding_bytes + bounds
        return Footprint(held.peak_bytes + bounds, held.steady_bytes + bounds, decoding)
    if not any(policy.compresses for policy in policies):
        plain = _plain(model, prompt, total)
        return Footprint(peak_bytes=plain.peak_bytes + bounds, steady_bytes=plain.steady_bytes + bounds)
    at_prompt = _Held(policies, model, prompt, prompt)
    at_end = _Held(policies, model, prompt, total)
    steady = max(at_end.steady, at_prompt.steady)
    last = offloading(policies)
    if last is not None:
        return _offloaded(policies, last, model, prompt, total)
    rest = state_bytes(model) + at_end.index + _statistics(policies, model, prompt, total) + _windows(model) + bounds
    decoding = steady + at_end.rewritten
    first = rehearsing(policies)
    if first is not None:
        peak = max(_rehearsal(first, model, prompt), decoding)
        return Footprint(peak_bytes=peak + rest, steady_bytes=steady + rest, decoding_bytes=decoding + rest)
    filling = at_prompt.steady + max(
        pages_bytes(own, model.format, prompt) + _between(policies, model, own, prompt) for own in _widths(model)
    )
    return Footprint(peak_bytes=max(filling, decoding) + rest, steady_bytes=steady + rest)


def _offloaded(
    policies: Sequence[CachePolicy], last: CachePolicy, model: ModelInfo, prompt: int, total: int
) -> Footprint:
    """In memory: the pages since `last` acted, and buffers for groups of heads. While the prompt is compressed one
    layer of it as it was; what the policies before `last` make of a layer, or later of a page, is there beside it.
    """
    alone = not any(policy.compresses or policy.watches_decode for policy in policies[:-1])
    held = _Held(policies, model, prompt, total)
    pages = [group_page_bytes(model, group) for group in model.layer_groups() if group.window is None]
    rest = state_bytes(model) + held.index + _statistics(policies, model, prompt, total) + _windows(model)
    steady = rest + sum(pages) * (-(-last.period // PAGE) + 1) + _buffers(policies, last, model, total)
    layer = max(pages_bytes(own, model.format, prompt + 2 * PAGE, ragged=not alone) for own in _widths(model))
    decoding = steady + (1 if alone else 3) * sum(pages)
    filling = steady + (1 if alone else 3) * layer
    return Footprint(peak_bytes=max(filling, decoding), steady_bytes=steady, decoding_bytes=decoding)


def _buffers(policies: Sequence[CachePolicy], last: CachePolicy, model: ModelInfo, total: int) -> int:
    """Of the longest group of heads, in the widest format that it may have, page by page: every read is of whole blocks
    of the disk."""
    formats = {model.format}
    for policy in policies:
        formats |= {name for name in policy.stored(total) if name}
    pages = -(-total // PAGE) + 2
    most = 0
    for own in _widths(model):
        heads = min(last.head_group, own.kv_heads)
        slab = max(kv.slab_bytes(name, PAGE, own.head_dim) for name in formats)
        whole = -(-heads * slab // DISK_BLOCK) * DISK_BLOCK
        cut = any(policy.traits.ragged for policy in policies) or heads * slab % DISK_BLOCK > 0 or len(formats) > 1
        most = max(most, pages * (whole + (heads + 1) * DISK_BLOCK * cut))
    return BUFFERS * most


def _page_bounds(policies: Sequence[CachePolicy], model: ModelInfo, tokens: int) -> int:
    """What is known of the pages that rows select among, of a sequence of `tokens` tokens."""
    selections = [policy.selection(model) for policy in policies]
    return sum(selection.most_bytes(model, tokens) for selection in selections if selection is not None)


def state_bytes(model: ModelInfo) -> int:
    """Bytes of the recurrent states of one sequence: what is committed, and what its newest rows make of it."""
    return 2 * _run(len(model.state_layers) * slab_bytes(model)) if model.state_layers else 0


def pages_bytes(widths: Widths, format: str, slots: int, *, ragged: bool = False) -> int:
    """Bytes of `slots` a head of one layer, held in runs of one page of 64 (ragged: and one head)."""
    slab = kv.slab_bytes(format, PAGE, widths.head_dim)
    page = widths.kv_heads * _run(slab) if ragged else _run(widths.kv_heads * slab)
    return -(-slots // PAGE) * page


def _widths(model: ModelInfo) -> list[Widths]:
    """Of the layers that policies act on; the model's own where they act on none."""
    own = [model.of(layer) for layer in model.policy_layers]
    return own or [Widths(model.heads, model.kv_heads, model.head_dim)]


def shared_bytes(model: ModelInfo, tokens: int, length: int) -> int:
    """Bytes of full-precision pages among the first `tokens` that a sequence of `length` tokens still holds: what it
    need not take where others hold them too. Windowed groups let go of theirs page by page.
    """
    pages, seen = tokens // PAGE, length // PAGE * PAGE
    return sum(
        group_page_bytes(model, group) * max(0, pages - first_page(group, seen)) for group in model.layer_groups()
    )


def group_page_bytes(model: ModelInfo, group: LayerGroup) -> int:
    """Bytes of one full-precision page of all layers of a group."""
    return _run(kv.slab_bytes(model.format, PAGE, group.head_dim) * group.kv_heads * len(group.layers))


class _Held:
    """Bytes of the global layers when `total` tokens were seen, between events.

    steady: with the open page. rewritten: what an event holds twice, and a page reserved for drafts. index: positions,
    biases, first keys.
    """

    def __init__(self, policies: Sequence[CachePolicy], model: ModelInfo, prompt: int, total: int) -> None:
        widths = [model.of(layer) for layer in model.policy_layers]
        generated = total - prompt
        quantiser = next((policy for policy in policies if policy.traits.quantises), None)
        rewriting = _rewriting(policies)
        holes = _leaves_holes(policies)
        after_prompt, slots = _bounds([policy.kept for policy in policies], prompt, generated, holes)
        in_layer = _bounds([policy.kept_in_layer for policy in policies], prompt, generated, holes)
        separate = sum(policy.separate_slots for policy in policies)
        cuts = 1 + (separate > 0)
        held = sum(_layer_bytes(policies, model, own, slots, after_prompt, quantiser, cuts) for own in widths)
        largest = max(
            _layer_bytes(policies, model, own, in_layer[1], in_layer[0], quantiser, cuts) for own in _widths(model)
        )
        open_page = sum(group_page_bytes(model, group) for group in model.layer_groups() if group.window is None)
        self.steady = held + (open_page if slots < prompt + generated else 0)
        first_keys = sum(own.kv_heads * 4 * separate * (own.head_dim + 4) for own in widths)
        self.rewritten = open_page + (largest if rewriting else open_page) + first_keys
        evicts = slots < prompt + generated or rewriting
        biased = any(policy.traits.biases for policy in policies)
        per_slot = 4 * (evicts or biased) + 4 * biased + 8 * holes
        self.index = first_keys + sum(own.kv_heads * per_slot * (slots + 2 * PAGE) for own in widths)


def _rewriting(policies: Sequence[CachePolicy]) -> bool:
    """Whether evictions while decoding take single slots, so that pages are written anew."""
    return any(
        policy.watches_decode and not (policy.traits.whole_pages or policy.traits.quantises) for policy in policies
    )


def _leaves_holes(policies: Sequence[CachePolicy]) -> bool:
    """Whether evictions while decoding leave holes in quantised pages: they free nothing for sure."""
    return _rewriting(policies) and any(policy.traits.quantises for policy in policies)


def _bounds(kept: Sequence[Callable[[int, int], int]], prompt: int, generated: int, holes: bool) -> tuple[int, int]:
    """Slots after the prompt and after `generated` more, by the bounds of policies that act in order."""
    after_prompt, slots = prompt, prompt + generated
    for bound in kept:
        after_prompt = min(after_prompt, bound(prompt, 0))
        grown = bound(prompt, 0) + generated if holes else bound(prompt, generated)
        slots = min(slots, after_prompt + generated, grown)
    return after_prompt, slots


def _layer_bytes(
    policies: Sequence[CachePolicy],
    model: ModelInfo,
    widths: Widths,
    slots: int,
    after_prompt: int,
    quantiser: CachePolicy | None,
    cuts: int,
) -> int:
    """One layer's segments. cuts: borders between segments, each of which may leave a partly used page."""
    ragged = any(policy.traits.ragged for policy in policies)
    formats = {"": slots} if quantiser is None else quantiser.stored(slots)
    total = pages_bytes(widths, model.format, formats.get("", 0) + cuts * PAGE, ragged=ragged)
    for name, count in formats.items():
        if name:
            slab = kv.slab_bytes(name, PAGE, widths.head_dim)
            first = min(count, after_prompt)
            # The prompt's codes are one run (ragged: one a head); later ones, and cut pages, are runs of a page.
            total += _run(widths.kv_heads * slab * (-(-first // PAGE) + 1))
            total += widths.kv_heads * (slab + RUN) if ragged else 0
            total += pages_bytes(widths, name, count - first + cuts * PAGE)
    return total


def _between(policies: Sequence[CachePolicy], model: ModelInfo, widths: Widths, prompt: int) -> int:
    """What the first policy leaves of a layer while it is rewritten: by a later one, or by itself as codes."""
    acting = [policy for policy in policies if policy.compresses]
    first = acting[0]
    if len(acting) < 2 and not (first.traits.quantises and first.kept(prompt, 0) < prompt):
        return 0
    slots = first.kept_in_layer(prompt, 0) + 2 * PAGE
    return pages_bytes(widths, model.format, slots, ragged=first.traits.ragged)


def _plain(model: ModelInfo, prompt: int, total: int) -> Footprint:
    """The full cache: pages of all layers of a group; windowed groups keep their window and one chunk."""
    return _pages(model, prompt, total, model.layer_groups())


def _pages(model: ModelInfo, prompt: int, total: int, groups: Sequence[LayerGroup]) -> Footprint:
    """The states, and the full-precision pages of some layer groups."""
    steady, extra = state_bytes(model), 0
    for group in groups:
        page = group_page_bytes(model, group)
        pages = -(-total // PAGE)
        if group.window is None:
            steady += pages * page
            extra += page
        else:
            # The window's first page is partly left, the newest is partly filled; a chunk is reserved before pages go.
            held = min(pages, -(-group.window // PAGE) + 2)
            steady += held * page
            extra += min(pages - held + 1, -(-model.chunk // PAGE) + 1) * page
    return Footprint(peak_bytes=steady + extra, steady_bytes=steady)


def _causal(policies: Sequence[CachePolicy], model: ModelInfo, prompt: int, total: int) -> Footprint:
    """What causal policies keep of `total` tokens, and beside it the block that is being read, in full precision. A
    windowed group is as in the full cache."""
    held = _Held(policies, model, 1, total)
    windowed = _pages(model, prompt, total, [group for group in model.layer_groups() if group.window is not None])
    block = sum(group_page_bytes(model, group) for group in model.layer_groups() if group.window is None)
    steady = held.steady + held.index + windowed.steady_bytes + _statistics(policies, model, prompt, total)
    peak = steady + held.rewritten + (BLOCK // PAGE + 1) * block + windowed.peak_bytes - windowed.steady_bytes
    return Footprint(peak_bytes=peak, steady_bytes=steady)


def _rehearsal(policy: RehearsingPolicy, model: ModelInfo, prompt: int) -> int:
    """The prompt in full, and beside it the forced rows of all layers, or what the policy keeps of it (pages of all
    layers are given back with the last of them); and what scoring holds."""
    rows = policy.rehearsal_rows(model, prompt)
    more = -(-rows // PAGE) + 1
    full = forced = 0
    for group in model.layer_groups():
        page = group_page_bytes(model, group)
        pages = -(-prompt // PAGE) + 1
        if group.window is not None:
            pages = min(pages, -(-group.window // PAGE) + -(-model.chunk // PAGE) + 3)
        full += pages * page
        forced += more * page
    kept = sum(
        pages_bytes(model.of(layer), model.format, policy.kept(prompt) + PAGE, ragged=True)
        for layer in model.policy_layers
    )
    return full + max(forced, kept) + working_bytes(model, prompt, rows)


def _windows(model: ModelInfo) -> int:
    """Windowed layers after a layer-major prompt: pages of their own, and the group's newer pages."""
    return sum(
        pages_bytes(model.of(group.layers[0]), model.format, group.window + 3 * PAGE) * len(group.layers)
        for group in model.layer_groups()
        if group.window is not None
    )


def _statistics(policies: Sequence[CachePolicy], model: ModelInfo, prompt: int, total: int) -> int:
    """Query rows of one layer and column sums: of the layer in work, and of all kept slots while decoding, there twice
    (a row's own, until it is committed; and the old table beside the new one when it grows). Token ids: of the
    sequence, and of every head's kept slots."""
    need = wanted(policies, model)
    held, widths = 0, _widths(model)
    generated = max(PAGE, total - prompt)
    # What a ragged policy promises is a mean over heads; the widest head may hold everything. Holes have columns too.
    bounds = [
        policy.kept_in_layer(prompt) + generated if _leaves_holes(policies) else policy.kept_in_layer(prompt, generated)
        for policy in policies
        if not policy.traits.ragged
    ]
    widest = min([max(total, prompt + PAGE), *bounds]) + 2 * PAGE
    if need.queries is not None:
        rows = prompt if need.queries == "all" else min(prompt, int(need.queries))
        held += 4 * rows * max(own.heads * own.head_dim for own in widths)
    if need.column_sums:
        held += 4 * prompt * model.most_heads
        if need.decode:
            held += 2 * 4 * widest * model.most_heads * len(model.policy_layers)
    if need.tokens:
        kv_heads = sum(model.of(layer).kv_heads for layer in model.policy_layers)
        held += 4 * (total + PAGE) + 4 * widest * kv_heads
    return held


def _run(nbytes: int) -> int:
    return -(-nbytes // RUN) * RUN
