"""SpecPC: the tokens that a small model attends to are those that the large one is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from thrifty.arrays import Floats, Integers
from thrifty.cache.scores import window_attention
from thrifty.card import Card
from thrifty.engine.prompt.observer import Observer, See, unseen
from thrifty.engine.prompt.program import Drafts, Forward, Read, Work, check_context, check_numbers, check_vocabulary
from thrifty.engine.prompt.token_program import TokenProgram
from thrifty.errors import RecipeError
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.model_info import ModelInfo
    from thrifty.cache.view import LayerView
    from thrifty.decoding.services import ModelFacts

CARD = Card(
    title="Draft-based Approximate Inference for LLMs (SpecPC)",
    paper="arXiv:2506.08373",
    year=2025,
    mechanism=(
        "A draft model reads the prompt; the tokens that its last queries attend to most, with their neighbours, are "
        "all that the model reads."
    ),
    claim=(
        "better than other prompt compression at equal budgets: LongBench with Qwen2.5 14B and a 0.5B draft, 1024 "
        "tokens of the prompt"
    ),
    limits=(
        "both models need the same tokens, and the draft model's context must hold the prompt",
        "the draft model's weights and cache take memory, and its pass takes time: both are counted",
        (
            "of equal scores the first token ranks first (there in no order): pooling makes runs of equal scores, so "
            "that where a run begins is what is kept of it when the budget ends in it"
        ),
        "at equal distance the neighbour before a token is taken first (there in no order)",
        (
            "only the prefill's attention is looked at, as in the published settings (1 token ahead); queries of "
            "drafted tokens are not an option"
        ),
        (
            "kernel and neighbours of 64 are the setting for Qwen2.5 (32 for LLaMA 3); layers of the draft model "
            "before `first_layer` = 8 are left out, and those with a window: they see no whole prompt"
        ),
        "kept tokens stand at positions 0, 1 …, as in the official code",
        "softmax stays in fp32 (there it is rounded to the model's type)",
    ),
)


@technique(stage="prompt", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Specpc(TokenProgram):
    """draft: name or path of the model that drafts. capacity: tokens of the prompt that are read, or keep: their share.
    Shorter prompts are read whole.

    window: the last tokens, whose queries decide and which stay. kernel: neighbours of which the greatest score counts.
    neighbours: how many tokens around a chosen one are read too. first_layer: of the draft model, whose attention
    counts.
    """

    draft: Annotated[str, Field(min_length=1)]
    window: Annotated[int, Field(ge=1)] = 64
    kernel: Annotated[int, Field(ge=1)] = 64
    neighbours: Annotated[int, Field(ge=0)] = 64
    first_layer: Annotated[int, Field(ge=0)] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is None and self.window >= self.capacity:
            raise RecipeError(
                f"specpc: window = {self.window} leaves nothing to choose of capacity = {self.capacity}; use a larger "
                "capacity, or a smaller window"
            )

    @property
    def models(self) -> tuple[str, ...]:
        """The draft model."""
        return (self.draft,)

    @property
    def forced(self) -> int:
        """The window."""
        return self.window

    def check(self, model: ModelInfo, facts: ModelFacts, drafts: Drafts) -> None:
        """The draft model must have the same tokens, and a layer whose attention counts."""
        check_vocabulary(self.name, facts, drafts)
        layers = self._layers(drafts[self.draft].info)
        if not layers:
            raise RecipeError(
                f"specpc: the draft model {self.draft!r} has no layer from {self.first_layer} on that attends to "
                f"everything; it has {drafts[self.draft].info.layers} layers: use a smaller first_layer, or another "
                "draft model"
            )

    def check_prompt(self, prompt: int, drafts: Drafts) -> None:
        """The draft model must hold it."""
        check_context(self.name, prompt, drafts)

    def draft_bytes(self, prompt: int, drafts: Drafts) -> int:
        """A pass by layers, the attention of a KV head's queries twice, and its keys."""
        draft = drafts[self.draft]
        info = draft.info
        widths = [info.of(layer) for layer in self._layers(info)]
        seen = max(prompt * (8 * own.group * min(self.window, prompt) + 4 * own.head_dim) for own in widths)
        return draft.pass_bytes(self._observer(info, unseen), prompt) + seen + 4 * prompt

    def run(self, prompt: Sequence[int], model: ModelInfo, forward: Forward, answer: int) -> Work[Read]:
        """The draft model's pass; the greatest weighted attention to each token, over layers, heads and queries (§4.2,
        algorithm 2)."""
        scores = np.zeros(len(prompt), np.float32)

        def see(kv: LayerView, queries: Floats) -> None:
            for head in range(kv.kv_heads):
                np.maximum(scores, weighted(window_attention(kv, head, queries)), out=scores)

        yield from forward.observe_draft(self.draft, prompt, self._observer(None, see))
        check_numbers(self.name, scores)
        return self.read(prompt, self.choose(scores))

    def choose(self, scores: Floats) -> Integers:
        """Places of the tokens that stay, rising: the window, then the best tokens, each with its neighbours by their
        distance, until the budget is full."""
        budget, count = self.rows(len(scores)), len(scores)
        ranked = np.argsort(-smoothed(scores, self.kernel), kind="stable")[:budget]
        around = ranked[:, None] + offsets(self.neighbours)
        window = np.arange(max(0, count - self.window), count)
        order = np.concatenate((window, np.clip(around, 0, count - 1).ravel()))
        _, first = np.unique(order, return_index=True)
        chosen: Integers = np.sort(order[np.sort(first)[:budget]])
        return chosen

    def _layers(self, draft: ModelInfo) -> tuple[int, ...]:
        return tuple(layer for layer in draft.policy_layers if layer >= self.first_layer)

    def _observer(self, draft: ModelInfo | None, see: See) -> Observer:
        """draft: None where the engine knows it: layers with a window are never shown."""
        layers = range(self.first_layer, 1 << 16) if draft is None else self._layers(draft)
        return Observer(queries=self.window, layers=layers, see=see)


def weighted(attention: Floats) -> Floats:
    """[tokens] fp32: the greatest of attention [group, rows, tokens] whose rows weigh 0 to 1, the last one most."""
    rows = attention.shape[1]
    weights = np.linspace(0, 1, rows, dtype=np.float32) if rows > 1 else np.ones(1, np.float32)
    greatest: Floats = (attention * weights[:, None]).max(axis=(0, 1))
    return greatest


def smoothed(scores: Floats, kernel: int) -> Floats:
    """[tokens]: the greatest of `kernel` scores around each, (kernel − 1) // 2 of them before it; zeros beyond."""
    before = (kernel - 1) // 2
    padded = np.pad(scores, (before, kernel - 1 - before))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel)
    greatest: Floats = windows.max(axis=1)
    return greatest


def offsets(neighbours: int) -> Integers:
    """int64: where the neighbours of a token lie, itself first, nearest first, those before it first."""
    if not neighbours:
        return np.zeros(1, np.int64)
    before = (neighbours - 1) // 2
    around = np.arange(-before, neighbours - before)
    return around[np.argsort(np.abs(around), kind="stable")]
