"""KVzip: what the model needs to repeat its context is what any later question may need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from thrifty.arrays import Flags, Floats
from thrifty.cache.edits import Edits
from thrifty.cache.head_scores import by_kv_head, check_scores
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.rehearsing_policy import Reduction, RehearsingPolicy
from thrifty.cache.scores import attention_map, best
from thrifty.cache.statistics import Rehearsal
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.errors import PromptError, RecipeError
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView

FIRST = "\n\nRepeat the previous context exactly."
LATER = "\n\nRepeat the part of the previous context exactly, starting with "
QUOTED = 8
"""Tokens of the preceding chunk that a later chunk is asked to start with."""
SHORTEST = 64
"""Tokens of a chunk that the context must have room for."""
FRAMING = 64
"""Tokens that the instruction takes at most where there is no tokenizer to count them."""

CARD = Card(
    title="KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction",
    paper="arXiv:2505.23416",
    year=2025,
    mechanism=(
        "Has the model repeat its context once, and keeps, over all layers and heads together, what that attended to "
        "most: one compressed cache serves any later question."
    ),
    claim="a cache 3 to 4 times as small, decoding twice as fast, at next to no loss over many questions; scoring "
    "takes about twice a prefill's work",
    limits=(
        "the prompt is held in full, and as many rows as are repeated at once, until it is compressed",
        "the context must have room for a repeated chunk behind the prompt",
        (
            "the instruction follows the prompt as it stands: one that ends inside the user's turn, as the paper's; a "
            "chat request ends behind it, so the instruction stands in the assistant's turn"
        ),
        (
            "exactly the share is kept, of equal scores the first (the official code keeps what is above a threshold: "
            "one slot less, or several where scores are equal); softmax in fp32 (there in the model's type)"
        ),
        (
            "`level` head: scores of `thrifty heads MODEL --kind kvzip`, from texts of about a thousand tokens (the "
            "paper: up to 88 thousand); prompt-head, which scores the prompt itself, is Thrifty's own"
        ),
        "no uniform level: the official code can also give every head the same number",
        "works with policies behind it that need no statistics of the prompt's attention",
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Kvzip(RehearsingPolicy):
    """keep: kept share of the prompt's slots, of all layers and heads together; the first `sinks` tokens come on top,
    and with `opening` all that the chat template says before the user's text (system prompt, head of the turn).

    level: what is ranked: slots ("pair"), whole heads by scores that were measured once a model ("head", without any
    repeating), or whole heads by this prompt ("prompt-head"); a dropped head keeps its sinks alone. chunk: tokens that
    are repeated at once, fewer where the context ends. group: how a KV head's query heads are reduced.
    """

    keep: float = 0.3
    level: Literal["pair", "head", "prompt-head"] = "pair"
    chunk: int = 2000
    sinks: int = 4
    opening: bool = True
    group: Reduction = "max"

    traits = Traits(exact=True, ragged=True)
    scores_kind: ClassVar[str] = "kvzip"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise RecipeError(f"kvzip: keep = {self.keep}; use 0 < keep ≤ 1")
        if self.chunk < 1 or self.sinks < 1:
            raise RecipeError(
                f"kvzip: chunk = {self.chunk}, sinks = {self.sinks}; use chunk ≥ 1, and sinks ≥ 1 so that every head "
                "has a slot"
            )

    @property
    def kind(self) -> str | None:
        """The scores of heads that it needs; None where it makes its own."""
        return self.scores_kind if self.level == "head" else None

    def check(self, model: ModelInfo) -> None:
        """Level "head": the model must have scores of this kind."""
        if self.level == "head":
            check_scores(self.name, model, self.scores_kind)

    def for_prompt(self, model: ModelInfo, prompt: Sequence[int]) -> Self:
        """The same with as many sinks as the chat template's opening has tokens, where it begins the prompt (the
        official code's `sink = start_idx`)."""
        opening = model.opening(prompt) if self.opening else 0
        return self if opening <= self.sinks else replace(self, sinks=opening)

    def check_prompt(self, model: ModelInfo, prompt: int) -> None:
        """Raises RecipeError without a tokenizer, PromptError where the context has no room to repeat anything."""
        if self.level == "head":
            return
        if model.instruct is None:
            raise RecipeError("kvzip asks the model to repeat its context, and this model has no tokenizer: add one")
        need = min(SHORTEST, max(0, prompt - self.sinks))
        if model.context and need and self._room(model, prompt) < need:
            raise PromptError(
                f"kvzip repeats parts of the prompt behind it: after {prompt} tokens the context of {model.context} "
                f"has no room for that; use a prompt of at most {model.context - _framing(model) - SHORTEST} tokens"
            )

    def rehearsals(self, model: ModelInfo, prompt: Sequence[int], first: int) -> list[Rehearsal]:
        """Chunks of the context, each behind the request to repeat it (§3.2)."""
        start, end = max(first, self.sinks), len(prompt)
        if self.keep == 1 or self.level == "head" or start >= end or not model.policy_layers:
            return []
        self.check_prompt(model, end)
        assert model.instruct is not None
        size = self._size(model, end)
        pieces = []
        for low in range(start, end, size):
            later = low > start
            asked = model.instruct(LATER, prompt[max(0, low - QUOTED) : low]) if later else model.instruct(FIRST, ())
            stop = min(low + size, end)
            pieces.append(Rehearsal((*asked, *prompt[low:stop]), low, stop, self.sinks))
        return pieces

    def rehearsal_rows(self, model: ModelInfo, prompt: int) -> int:
        """A chunk and the request to repeat it."""
        return 0 if self.level == "head" else min(self._size(model, prompt), prompt) + _framing(model)

    @property
    def reduction(self) -> Reduction:
        """Of Eq. 2: `group`."""
        return self.group

    def score_rows(self, model: ModelInfo, queries: Floats, keys: Floats, seen: slice) -> Floats:
        """The greatest attention to each slot over rows and query heads (§3.2, Eq. 2)."""
        chances = attention(queries, keys, model.scale, model.softcap)[..., seen]
        reduced = chances.max(axis=0) if self.group == "max" else chances.mean(axis=0)
        return reduced.max(axis=0)

    def after_prompt(self, layers: list[LayerView], scores: list[list[Floats]]) -> Edits:
        """Keep the best slots, or the heads with the best slots, of all layers and heads together (§3.3)."""
        edits = Edits()
        if self.level == "head" and self.keep < 1 and layers:
            scores = self._measured(layers)
        heads = [own for layer_scores in scores for own in layer_scores]
        if not any(np.isfinite(own).any() for own in heads):
            return edits
        kept = best_slots(heads, self.keep) if self.level == "pair" else best_heads(heads, self.keep)
        slots = iter(np.flatnonzero(flags) for flags in kept)
        for view in layers:
            edits.keep([next(slots) for _ in range(view.kv_heads)], layer=view.layer)
        return edits

    def _measured(self, layers: list[LayerView]) -> list[list[Floats]]:
        """Every slot behind the sinks with its head's score (§3.4); infinite for the others."""
        shares = by_kv_head(layers[0].info.model, self.scores_kind, "max")
        scores = []
        for view, own in zip(layers, shares, strict=True):
            positions = [view.positions(head) for head in range(view.kv_heads)]
            pairs = zip(positions, own.tolist(), strict=True)
            scores.append([np.where(there >= self.sinks, score, np.inf).astype(np.float32) for there, score in pairs])
        return scores

    def kept(self, prompt: int, generated: int = 0) -> int:
        """The sinks, the share of the rest, and every generated token."""
        return min(prompt, self.sinks + math.ceil(self.keep * max(0, prompt - self.sinks))) + generated

    def kept_in_layer(self, prompt: int, generated: int = 0) -> int:
        """One threshold for all layers may leave a layer whole."""
        return prompt + generated

    def _size(self, model: ModelInfo, prompt: int) -> int:
        """Tokens of a chunk."""
        return min(self.chunk, max(1, self._room(model, prompt))) if model.context else self.chunk

    def _room(self, model: ModelInfo, prompt: int) -> int:
        return model.context - prompt - _framing(model)


def attention(queries: Floats, keys: Floats, scale: float, softcap: float | None) -> Floats:
    """Softmax attention [group, rows, slots] fp32 of queries [group, rows, head_dim] to keys [slots, head_dim], of
    which the last are the rows' own: a row sees none that come after it."""
    group, rows, head_dim = queries.shape
    sees = np.tile(np.arange(len(keys) - rows, len(keys)) + 1, group)
    chances = attention_map(queries.reshape(-1, head_dim), keys, sees, scale=scale, softcap=softcap)
    return chances.reshape(group, rows, len(keys))


def best_slots(scores: Sequence[Floats], keep: float) -> list[Flags]:
    """By head which slots stay: those of infinite score, and of the others together exactly the share `keep`, rounded
    down; of equal scores the first."""
    every = np.concatenate(scores)
    scored = np.isfinite(every)
    kept = ~scored
    kept[best(np.where(scored, every, -1.0), math.floor(keep * np.count_nonzero(scored)))] = True
    return np.split(kept, np.cumsum([len(own) for own in scores])[:-1])


def best_heads(scores: Sequence[Floats], keep: float) -> list[Flags]:
    """By head which slots stay: all of the share `keep` of heads (rounded down) whose best slot scores highest, of the
    others those of infinite score."""
    highest = np.array([np.where(np.isfinite(own), own, -1.0).max() for own in scores])
    chosen = set(best(highest, math.floor(keep * len(scores))).tolist())
    return [np.ones(len(own), bool) if head in chosen else ~np.isfinite(own) for head, own in enumerate(scores)]


def _framing(model: ModelInfo) -> int:
    """Tokens of the longest request to repeat."""
    if model.instruct is None:
        return FRAMING
    return max(len(model.instruct(FIRST, ())), len(model.instruct(LATER, (0,) * QUOTED)))
