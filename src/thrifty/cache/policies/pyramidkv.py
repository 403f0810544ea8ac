"""PyramidKV: SnapKV's scores, with budgets that shrink from the bottom layer to the top one."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.cache.layer_budgets import bottom_layer, check_beta, pyramid_budget
from thrifty.cache.model_info import LayerInfo
from thrifty.cache.policies.snapkv import Snapkv
from thrifty.card import Card
from thrifty.registry import technique

CARD = Card(
    title="PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
    paper="arXiv:2406.02069",
    year=2024,
    mechanism=(
        "Gives lower layers, whose attention is spread out, more slots than upper ones, in an arithmetic sequence; "
        "inside a layer every head keeps its best-scored slots and the newest, as SnapKV does."
    ),
    claim="LongBench, Llama-3-8B, 64 slots a layer: 34.76 against SnapKV's 33.05 (full cache: 41.46)",
    limits=(
        "the mean over layers is the asked one to the slot (the official code's integer steps add up to 5 %)",
        "ranks global layers only: a sliding-window layer holds its window",
        "a budget above what a prompt has goes to the upper layers, also where the official code gives up the pyramid",
        ("the official code keeps `window` tokens beside the layer's budget, as here; kvpress counts them inside it"),
        "a query group's scores are reduced by their mean, KVCache-Factory's `gqa_score_agg`",
        "the share is of all tokens so far, evicted ones of earlier prompts included",
        "relies on the question standing at the end of the prompt; generated tokens are never evicted",
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Pyramidkv(Snapkv):
    """keep, capacity: the mean over layers, window included. beta: how many times less than the mean the top layer
    keeps beside its window (§4.2; 1: every layer the same). The window of 8 is the paper's.
    """

    window: int = 8
    beta: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.name, self.beta)

    def budgets(self, layer: LayerInfo, counts: list[int], newest: int) -> list[int]:
        """The layer's place in the pyramid, the same for its heads."""
        return [pyramid_budget(layer, self.budget(layer.length, newest), newest, self.beta)] * len(counts)

    def kept_in_layer(self, prompt: int, generated: int = 0) -> int:
        """The bottom layer, and every generated token."""
        return bottom_layer(prompt, self.budget(prompt, self.window), self.window, self.beta) + generated
