"""KIVI: keys quantised per channel, values per token, the newest tokens exact."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from thrifty.cache.edits import Edits
from thrifty.cache.exact_slots import exact_from_end, store_ranges
from thrifty.cache.model_info import LayerInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.statistics import Stats
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.formats.kv import PAGE, code_format
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView, Stretch

CARD = Card(
    title="KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
    paper="arXiv:2402.02750",
    year=2024,
    mechanism=(
        "Stores keys in groups along tokens (per channel) and values in groups along channels (per token), "
        "newest exact."
    ),
    claim="2 bits: 2.6 times less peak memory, weights included; Llama-2-7B GSM8K 13.50 to 12.74",
    limits=(
        (
            "the residual moves by pages of 64: `residual` to `residual` + 127 tokens are exact, keys and values "
            "alike; the official code has n mod R exact keys (64 in the mean) and R values, so short prompts look "
            "better here"
        ),
        "a segment of fewer tokens than a group (attention sinks, the end of a prompt) stays exact",
        "groups of 64 and 128, which the paper measures too, have no format; 16 has none at 8 bits",
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Kivi(CachePolicy):
    """bits 4, 2 (or 8): codes of what is older than the newest `residual` tokens. x = scale·code + minimum (§3.1).

    group: tokens (keys, per channel) and channels (values, per token) that share a scale, the paper's G; residual is
    its R. causal: pages become codes while the prompt is read, 128 tokens at a time, and rows attend to codes of what
    is older: another result, of the tokens before alone, so that requests share the codes.
    """

    bits: Literal[2, 4, 8] = 2
    residual: int = 128
    group: Literal[16, 32] = 32
    causal: bool = False

    traits = Traits(quantises=True, causal=True)

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8) or self.residual < 0:
            raise RecipeError(
                f"kivi: bits = {self.bits}, residual = {self.residual}; use bits 2, 4 or 8 and residual ≥ 0"
            )
        if self.group not in (16, 32) or (self.bits, self.group) == (8, 16):
            raise RecipeError(
                f"kivi: bits = {self.bits}, group = {self.group}; use group 32, or group 16 with bits 2 or 4"
            )

    @property
    def format(self) -> str:
        """The format of old slots."""
        return code_format(self.bits, self.group)

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Quantise whole pages before the residual; the residual becomes pages that age out one by one."""
        edits = Edits()
        heads: list[int | None] = [None] if kv.uniform else list(range(kv.kv_heads))
        for head in heads:
            limit = kv.count(head or 0) - self.residual
            for stretch in _exact(kv.stretches(head or 0), self.group):
                self._split(edits, stretch, limit, layer.index, head)
        return edits

    def after_decode(self, layers: list[LayerView], stats: list[Stats]) -> Edits | None:
        """Quantise the segments that have left the residual window."""
        return store_ranges(layers, self._aged, self.format)

    def stored(self, slots: int) -> dict[str, int]:
        """Codes behind the residual; the residual and what its pages and a period add."""
        return {self.format: max(0, slots - self.residual), "": min(slots, self.residual + PAGE + self.interval)}

    def _split(self, edits: Edits, stretch: Stretch, limit: int, layer: int, head: int | None) -> None:
        """One stretch: codes up to the last whole page before `limit`, then exact pages."""
        if stretch.stop <= limit:
            edits.store(stretch.start, stretch.stop, self.format, layer=layer, head=head)
            return
        border = stretch.start + max(0, limit - stretch.start) // PAGE * PAGE
        edits.store(stretch.start, border, self.format, layer=layer, head=head)
        for start in range(border, stretch.stop, PAGE):
            edits.store(start, min(start + PAGE, stretch.stop), "", layer=layer, head=head)

    def _aged(self, view: LayerView, head: int) -> list[tuple[int, int | None]]:
        """Exact stretches behind the residual, counted from the end, oldest first."""
        return [
            (stretch.start, stretch.stop or None)
            for stretch in exact_from_end(view, head)[::-1]
            if stretch.stop <= -self.residual and stretch.stop - stretch.start >= self.group
        ]


def _exact(stretches: Iterable[Stretch], group: int) -> Iterator[Stretch]:
    """The stretches in full precision that together hold at least `group` where they follow one another: the same
    whether a prompt lies in one piece or in pages that a prefix hit brought.
    """
    for quantised, neighbours in itertools.groupby(stretches, key=lambda stretch: stretch.quantised):
        run = list(neighbours)
        if not quantised and run[-1].stop - run[0].start >= group:
            yield from run
