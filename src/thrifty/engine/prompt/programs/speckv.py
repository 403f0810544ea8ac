"""SpecKV: what a small model would answer asks for the slots of the cache that the large one's answer will need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from thrifty.arrays import Floats
from thrifty.cache.edits import Edits
from thrifty.cache.policy import CachePolicy
from thrifty.cache.scores import attention_map, best, pooled
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.engine.prompt.program import (
    Drafts,
    Forward,
    ProgramTraits,
    PromptProgram,
    Read,
    Work,
    check_context,
    check_vocabulary,
    refuse_recurrent,
)
from thrifty.errors import RecipeError
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.model_info import LayerInfo, ModelInfo
    from thrifty.cache.view import LayerView
    from thrifty.decoding.services import ModelFacts

ROWS = 16
"""Queries that are scored together: so much attention is held at once."""

CARD = Card(
    title="Draft-based Approximate Inference for LLMs (SpecKV)",
    paper="arXiv:2506.08373",
    year=2025,
    mechanism=(
        "A draft model answers first; a KV head keeps the prompt's slots that the last tokens and this draft attend to "
        "most."
    ),
    claim=(
        "LongBench, Qwen2.5 32B, 256 slots: 46.06 where SnapKV has 42.98 and the full cache 47.78 (read in a summary)"
    ),
    limits=(
        "both models need the same tokens, and the draft model's context must hold the prompt",
        "the draft model's weights and cache take memory, and its answer takes time: both are counted",
        (
            "lookahead: the official code drafts as many tokens as the answer may have; here that, and 64 at most "
            "unless told otherwise"
        ),
        (
            "the prompt attends in full: the official code makes attention of prompts over 4096 tokens sparse (2048 "
            "tokens and 2048 in a window), which saves it time"
        ),
        (
            "the slots keep their positions and the answer goes on behind the whole prompt (in the official code this "
            "follows from the mask that it hands on: read, not run)"
        ),
        "of equal scores the first stay (there in no order); softmax in fp32, as there",
        "a model with layers that attend to a window is refused (the official code warns of them)",
        "a prompt of at most `capacity` tokens is left as it is, and nothing is drafted",
        "generated tokens are never evicted",
    ),
)


@technique(stage="prompt", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Speckv(PromptProgram):
    """draft: name or path of the model that drafts. capacity: slots of the prompt that a head keeps, or keep: their
    share. Shorter prompts keep all.

    window: the last tokens that stay, and whose queries count beside the draft's. kernel: neighbours of which the
    greatest score counts (odd). lookahead: the most tokens that are drafted, never more than the answer may have.
    """

    draft: Annotated[str, Field(min_length=1)]
    capacity: Annotated[int, Field(ge=2)] = 256
    keep: Annotated[float, Field(gt=0, le=1)] | None = None
    window: Annotated[int, Field(ge=1)] = 32
    kernel: Annotated[int, Field(ge=1)] = 7
    lookahead: Annotated[int, Field(ge=1, le=4096)] = 64

    traits = ProgramTraits(drops_tokens=False)

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise RecipeError(f"speckv: kernel = {self.kernel}; use an odd number")
        if self.keep is None and self.window >= self.capacity:
            raise RecipeError(
                f"speckv: window = {self.window} leaves nothing to choose of capacity = {self.capacity}; use a larger "
                "capacity, or a smaller window"
            )

    @property
    def models(self) -> tuple[str, ...]:
        """The draft model."""
        return (self.draft,)

    def check(self, model: ModelInfo, facts: ModelFacts, drafts: Drafts) -> None:
        """Every layer of the model must keep all tokens, and the draft model must have the same ones."""
        refuse_recurrent(self.name, model)
        windowed = next((layer for layer, window in enumerate(model.windows) if window is not None), None)
        if windowed is not None:
            raise RecipeError(
                f"speckv: layer {windowed} of this model attends to a window of {model.windows[windowed]} tokens, "
                "which the drafted ones would push out of it; use a model that attends to everything in all its layers"
            )
        check_vocabulary(self.name, facts, drafts)

    def check_prompt(self, prompt: int, drafts: Drafts) -> None:
        """The draft model must hold it."""
        check_context(self.name, prompt, drafts)

    def applies(self, prompt: int) -> bool:
        """Whether the prompt is longer than its budget."""
        return prompt > max(self.slots(prompt), self.window + 1)

    def slots(self, prompt: int) -> int:
        """What a head keeps of a prompt."""
        return self.capacity if self.keep is None else max(self.window + 1, int(self.keep * prompt))

    def rows(self, prompt: int) -> int:
        """The prompt and the draft."""
        return prompt + self.lookahead

    def policy(self, prompt: int) -> Lookahead:
        """See PromptProgram."""
        return self._policy(prompt, self.lookahead)

    def draft_bytes(self, prompt: int, drafts: Drafts) -> int:
        """A sequence of the prompt and the draft."""
        return drafts[self.draft].sequence_bytes(prompt + self.lookahead, 1)

    def run(self, prompt: Sequence[int], model: ModelInfo, forward: Forward, answer: int) -> Work[Read]:
        """The draft model answers (§4.1, algorithm 1)."""
        room = max(1, model.context - len(prompt)) if model.context else self.lookahead
        ahead = yield from forward.draft(self.draft, prompt, min(self.lookahead, answer, room))
        return Read(tuple(prompt), self.slots(len(prompt)), ahead, self._policy(len(prompt), len(ahead)))

    def _policy(self, prompt: int, ahead: int) -> Lookahead:
        return Lookahead(capacity=self.slots(prompt), window=self.window, kernel=self.kernel, ahead=ahead)


@dataclass(frozen=True, kw_only=True)
class Lookahead(CachePolicy):
    """What keeps the slots, once a prompt and `ahead` tokens behind it were read. The prompt's last token goes too: it
    is read again, behind what stays."""

    name: ClassVar[str] = "speckv"
    traits: ClassVar[Traits] = Traits(exact=True)

    capacity: int
    window: int
    kernel: int
    ahead: int

    def wants(self, model: ModelInfo) -> Statistics:
        """The window's queries, the last token's, and the draft's."""
        return Statistics(queries=self.window + 1 + self.ahead)

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """The best slots before the window, and the window."""
        assert stats.queries is not None, "the policy asked for them"
        before = kv.count() - len(stats.queries)
        window = np.arange(before, before + self.window)
        kept = []
        for head in range(kv.kv_heads):
            scores = pooled(self.score(kv, head, stats.queries), self.kernel, "max")
            kept.append(np.concatenate((best(scores, self.capacity - self.window), window)))
        return Edits().keep(kept, layer=kv.layer)

    def score(self, kv: LayerView, head: int, queries: Floats) -> Floats:
        """[slots before the queries' own] fp32: the greatest attention of any query [rows, heads, head_dim] of the KV
        head's group (§4.1, eq. 6 with the code's reduction)."""
        model, group = kv.info.model, kv.info.widths.group
        keys, rows = kv.keys(head), len(queries)
        own = queries[:, head * group : (head + 1) * group]
        greatest = np.zeros(len(keys) - rows, np.float32)
        for first in range(0, rows, ROWS):
            part = own[first : first + ROWS]
            sees = np.repeat(np.arange(first, first + len(part)) + len(keys) - rows + 1, group)
            chances = attention_map(
                part.reshape(-1, keys.shape[1]), keys, sees, scale=model.scale, softcap=model.softcap
            )
            np.maximum(greatest, chances[:, : len(greatest)].max(axis=0), out=greatest)
        return greatest

    def kept(self, prompt: int, generated: int = 0) -> int:
        """The budget, and every generated token."""
        return min(prompt, self.capacity) + generated
