"""The bytes that a sequence will take at most, before it runs: what admission reserves."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.cache.policy import CachePolicy, Footprint, ModelInfo, wanted
from thrifty.formats import kv
from thrifty.formats.kv import PAGE

RUN = 4096
"""Arena runs are whole pages of the system."""


def footprint(policies: Sequence[CachePolicy], model: ModelInfo, prompt: int, total: int) -> Footprint:
    """Upper bounds of arena and index bytes for a prompt grown to `total` tokens, policies acting in order.

    Counted: one layer's full-precision scratch while the prompt is compressed layer by layer, the old and the new form
    of what an edit rewrites, a partly used page at every cut, whole arena pages, positions, statistics.
    """
    if not any(policy.compresses for policy in policies):
        return _plain(model, prompt, total)
    at_prompt = _Held(policies, model, prompt, prompt)
    at_end = _Held(policies, model, prompt, total)
    scratch = pages_bytes(model, model.format, prompt, 1)
    index = at_end.index + _statistics(policies, model, prompt)
    filling = at_prompt.steady + 2 * scratch + at_prompt.layer
    decoding = max(at_end.steady, at_prompt.steady) + at_end.rewritten
    windows = sum(_window_bytes(model, group.window, len(group.layers)) for group in model.layer_groups() if group.window)
    return Footprint(
        peak_bytes=max(filling, decoding) + windows + index, steady_bytes=max(at_end.steady, at_prompt.steady) + windows + index
    )


def pages_bytes(model: ModelInfo, format: str, slots: int, layers: int, *, ragged: bool = False) -> int:
    """Bytes of `slots` a head held in runs of one page of 64 for one layer each (ragged: and one head)."""
    slab = kv.slab_bytes(format, PAGE, model.head_dim)
    page = model.kv_heads * _run(slab) if ragged else _run(model.kv_heads * slab)
    return -(-slots // PAGE) * page * layers


def _plain(model: ModelInfo, prompt: int, total: int) -> Footprint:
    """The full cache: pages of all layers of a group; windowed groups keep their window and one chunk."""
    slab = kv.slab_bytes(model.format, PAGE, model.head_dim) * model.kv_heads
    steady = extra = 0
    for group in model.layer_groups():
        page = _run(slab * len(group.layers))
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


def _window_bytes(model: ModelInfo, window: int, layers: int) -> int:
    return pages_bytes(model, model.format, window + 3 * PAGE, layers)


class _Held:
    """Bytes of the global layers when `total` tokens were seen. layer: one layer's; rewritten: the most that an event
    holds twice."""

    def __init__(self, policies: Sequence[CachePolicy], model: ModelInfo, prompt: int, total: int) -> None:
        layers = len(model.layers_with(None))
        generated = total - prompt
        ragged = any(policy.ragged for policy in policies)
        quantiser = next((policy for policy in policies if policy.quantises), None)
        slots = after_prompt = prompt
        slots += generated
        for policy in policies:
            after_prompt = min(after_prompt, policy.kept(prompt, 0))
            keeps_holes = quantiser is not None and policy.watches_decode and not policy.whole_pages
            bound = policy.kept(prompt, 0) + generated if keeps_holes else policy.kept(prompt, generated)
            slots = min(slots, after_prompt + generated, bound)
        formats = {"": slots} if quantiser is None else quantiser.stored(slots)
        self.layer = 0
        for name, count in formats.items():
            if name == "":
                # Up to three cuts (sinks, the border of prompt and answer, the newest page) leave partly used pages.
                self.layer += pages_bytes(model, model.format, min(count, slots) + 3 * PAGE, 1, ragged=ragged)
            else:
                self.layer += self._packed(model, name, count, after_prompt, ragged)
        open_page = _run(kv.slab_bytes(model.format, PAGE, model.head_dim) * model.kv_heads * layers)
        self.steady = self.layer * layers + 2 * open_page
        self.rewritten = self.layer + 2 * open_page
        evicting = any(policy.kept(prompt, 0) < prompt or policy.watches_decode for policy in policies)
        per_slot = 4 if evicting else 0
        if quantiser is not None and any(policy.watches_decode and not policy.whole_pages for policy in policies):
            per_slot += 8  # logit biases that hide evicted slots of quantised pages
        sinks = sum(getattr(policy, "sinks", 0) for policy in policies)
        self.index = layers * model.kv_heads * (per_slot * (slots + 4 * PAGE) + 4 * sinks * (model.head_dim + 4))

    @staticmethod
    def _packed(model: ModelInfo, format: str, slots: int, after_prompt: int, ragged: bool) -> int:
        """Quantised slots of one layer: the prompt's in one run (ragged: one a head), later ones in runs of a page."""
        slab = kv.slab_bytes(format, PAGE, model.head_dim)
        first = min(slots, after_prompt)
        cuts = model.kv_heads * (slab + RUN) if ragged else 0
        prompt = _run(model.kv_heads * slab * (-(-first // PAGE) + 2)) + cuts
        return prompt + pages_bytes(model, format, slots - first, 1, ragged=False) + 3 * _run(model.kv_heads * slab)


def _statistics(policies: Sequence[CachePolicy], model: ModelInfo, prompt: int) -> int:
    """Query rows of one layer and column sums: of the layer in work, and of all kept slots while decoding."""
    need = wanted(policies, model)
    held = 0
    if need.queries is not None:
        rows = prompt if need.queries == "all" else min(prompt, int(need.queries))
        held += 4 * rows * model.heads * model.head_dim
    if need.column_sums:
        held += 4 * prompt * model.heads
        if need.decode:
            kept = min(policy.kept(prompt, PAGE) for policy in policies)
            held += 4 * (kept + 2 * PAGE) * model.heads * len(model.layers_with(None))
    return held


def _run(nbytes: int) -> int:
    return -(-nbytes // RUN) * RUN
