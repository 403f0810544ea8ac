"""StreamingLLM: attention sinks and a sliding window, with positions inside the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.statistics import Stats
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.formats.kv import PAGE
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView

CARD = Card(
    title="Efficient Streaming Language Models with Attention Sinks",
    paper="arXiv:2309.17453",
    year=2023,
    mechanism=(
        "Keeps the first tokens, which softmax uses as a sink, and a window of the newest; numbers both without a gap."
    ),
    claim=(
        "stable perplexity to 4 million tokens; Llama-2-13B on PG19: 5.40 (4 sinks + 1020) against 5158 (window alone)"
    ),
    limits=(
        "no recall of what left the window",
        (
            "the window shrinks page by page: it holds between `window` and `window` + 127 tokens, the paper's "
            "exactly `window`"
        ),
        "the prompt attends densely unless `causal` is on; the paper's language-model runs evict while reading",
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Streaming(CachePolicy):
    """The first `sinks` tokens and at least the newest `window` ("budget": as many as the request's byte budget holds).

    renumber: sinks are rotated to the positions right before the window (§3.2: positions inside the cache). The query
    and the window keep their true positions, so every relative distance equals the paper's 0..len−1 numbering.
    causal: evict while the prompt is read, as the paper's runs do, 128 tokens at a time: another result, of the tokens
    before alone, so that requests share what is held.
    """

    sinks: int = 4
    window: int | Literal["budget"] = 1020
    renumber: bool = True
    causal: bool = False

    traits = Traits(exact=True, whole_pages=True, uniform=True, causal=True)
    budgeted = "window"

    def __post_init__(self) -> None:
        if self.sinks < 0 or (not self.open_capacity and self.known(self.window) < 1):
            raise RecipeError(
                f"streaming: sinks = {self.sinks} and window = {self.window}; use sinks ≥ 0 and window ≥ 1"
            )

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Drop what lies between sinks and window; keep the rest as one segment of sinks and pages."""
        edits = Edits()
        count = kv.count()
        first = max(self.sinks, count - self.known(self.window))
        edits.drop(self.sinks, first, layer=layer.index)
        kept = min(self.sinks, count) + count - min(first, count)
        edits.store(0, min(self.sinks, kept), "", layer=layer.index)
        for start in range(self.sinks, kept, PAGE):
            edits.store(start, min(start + PAGE, kept), "", layer=layer.index)
        if self.renumber and first > self.sinks:
            self._renumber(edits, int(kv.positions(0)[first]), layer.index)
        return edits

    def after_decode(self, layers: list[LayerView], stats: list[Stats]) -> Edits | None:
        """Drop the oldest pages that lie wholly outside the window: of all layers at once where they hold as much."""
        edits = Edits()
        if len({view.count() for view in layers}) == 1:
            self._slide(edits, layers[0], None)
        else:
            for view in layers:
                self._slide(edits, view, view.layer)
        return edits or None

    def _slide(self, edits: Edits, view: LayerView, layer: int | None) -> None:
        """The window of one layer, or of all that are as it is."""
        count, window = view.count(), self.known(self.window)
        stop = self.sinks
        for stretch in view.stretches():
            if stretch.start < self.sinks:
                if stretch.stop > self.sinks:  # a short prompt: its first page holds sinks and window
                    stop = max(stop, min(stretch.stop, count - window))
            elif stretch.stop <= count - window:
                stop = stretch.stop
        if stop <= self.sinks:
            return
        if next(iter(view.stretches())).stop != self.sinks:
            edits.store(0, self.sinks, "", layer=layer)
        edits.drop(self.sinks, stop, layer=layer)
        if self.renumber:
            self._renumber(edits, int(view.positions(0)[stop]), layer)

    def kept(self, prompt: int, generated: int = 0) -> int:
        """Sinks, window, a page that is partly outside it, and what a period adds."""
        return min(
            prompt + generated, self.sinks + self.known(self.window) + (PAGE + self.interval if generated else 0)
        )

    @property
    def separate_slots(self) -> int:
        """The sinks."""
        return self.sinks

    @property
    def renumbers(self) -> bool:
        """Where it was not turned off."""
        return self.renumber

    def _renumber(self, edits: Edits, first: int, layer: int | None) -> None:
        """Sinks take the positions before `first`, the window's first."""
        edits.renumber(0, self.sinks, np.arange(first - self.sinks, first), layer=layer)
