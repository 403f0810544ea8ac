"""GemFilter: what an early layer's last query looks for is what the whole model needs of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Floats
from thrifty.cache.scores import best, pooled
from thrifty.card import Card
from thrifty.engine.prompt.observer import Observer, See, unseen
from thrifty.engine.prompt.program import Drafts, Forward, Read, Work, check_numbers, refuse_recurrent
from thrifty.engine.prompt.token_program import TokenProgram
from thrifty.errors import RecipeError
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.model_info import ModelInfo
    from thrifty.cache.view import LayerView
    from thrifty.decoding.services import ModelFacts

DEPTH = 19 / 31
"""Where the layer lies by default: the paper's layer 19 of 0 to 31 (Phi 3.5 Mini)."""

CARD = Card(
    title="Discovering the Gems in Early Layers: Accelerating Long-Context LLMs with 1000x Input Token Reduction",
    paper="arXiv:2409.17422",
    year=2024,
    mechanism=(
        "Runs the early layers over the prompt, keeps the tokens whose keys the last query scores highest in one of "
        "them, and reads these alone from the start."
    ),
    claim="2.4 times faster and 30 % less GPU memory than SnapKV, 128K tokens filtered to 1024",
    limits=(
        (
            "`first` and `last` tokens always stay, within the budget (4 and 32): the official code forces none, and "
            "may so drop the question or what a chat template ends a prompt with; first = last = 0 is its behaviour"
        ),
        (
            "layer: without one it lies at the depth of the paper's layer 19 of 32 (Phi 3.5 Mini; of LLaMA 3.1 8B it "
            "is 13 of 32, of Mistral Nemo 19 of 40), at the nearest that attends to everything. SmolLM2 135M names 5 "
            "of 8 hidden numbers there and 2 at the depth of 13 of 32 (64 of 512 tokens read); which layer is best has "
            "to be measured"
        ),
        "of equal scores the first stay (there in no order); keys as the cache holds them (bf16)",
        (
            "the last query decides: where a chat template ends the prompt, or the question stands before the text, it "
            "asks for something else, and little is found (`recall-asked`)"
        ),
        (
            "the first pass holds one layer's keys and values and the hidden state of the prompt (there those of all "
            "early layers), and nothing of it is used again"
        ),
        "kept tokens stand at positions 0, 1 …, as in the official code",
    ),
)


@technique(stage="prompt", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Gemfilter(TokenProgram):
    """capacity: tokens of the prompt that are read, or keep: their share. Shorter prompts are read whole.

    layer: whose keys and queries decide, counted from 0; None: the paper's share of the model's depth. kernel: how many
    neighbouring scores are averaged (odd). first, last: tokens that stay whatever they score, counted in the budget.
    """

    layer: int | None = None
    kernel: int = 5
    first: int = 4
    last: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise RecipeError(f"gemfilter: kernel = {self.kernel}; use an odd number ≥ 1")
        if self.first < 0 or self.last < 0 or (self.layer is not None and self.layer < 0):
            raise RecipeError(
                f"gemfilter: layer = {self.layer}, first = {self.first}, last = {self.last}; use 0 or more"
            )
        if self.keep is None and self.forced >= self.capacity:
            raise RecipeError(
                f"gemfilter: first = {self.first} and last = {self.last} leave nothing to choose of capacity = "
                f"{self.capacity}; use a larger capacity, or fewer of them"
            )

    def check(self, model: ModelInfo, facts: ModelFacts, drafts: Drafts) -> None:
        """The layer must be there, and attend to everything."""
        refuse_recurrent(self.name, model)
        known = model.policy_layers
        if not known:
            raise RecipeError("gemfilter: every layer of this model attends to a window; none scores the whole prompt")
        layer = self.chosen_layer(model)
        if layer in known:
            return
        if layer >= model.layers:
            raise RecipeError(f"gemfilter: layer = {layer}, but the model has {model.layers}; use one of {known}")
        raise RecipeError(
            f"gemfilter: layer {layer} attends to a window of {model.windows[layer]} tokens and cannot score the "
            f"others; use one of {known}"
        )

    @property
    def forced(self) -> int:
        """The first and the last."""
        return self.first + self.last

    def chosen_layer(self, model: ModelInfo) -> int:
        """`layer`, or the layer without a window that is nearest to the paper's depth."""
        if self.layer is not None:
            return self.layer
        depth = DEPTH * (model.layers - 1)
        return min(model.policy_layers, key=lambda layer: (abs(layer - depth), layer))

    def observer(self, model: ModelInfo) -> Observer:
        """The last query of one layer."""
        return self._observer(model, unseen)

    def run(self, prompt: Sequence[int], model: ModelInfo, forward: Forward, answer: int) -> Work[Read]:
        """Layers up to the chosen one; the tokens that its last query scores highest (§3, algorithm 1)."""
        scores = np.zeros(len(prompt), np.float32)

        def see(kv: LayerView, queries: Floats) -> None:
            scores[:] = last_query_scores(kv, queries[-1])

        yield from forward.observe(prompt, self._observer(model, see), self.chosen_layer(model) + 1)
        check_numbers(self.name, scores)
        return self.read(prompt, self.choose(scores))

    def choose(self, scores: Floats) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Places of the tokens that stay, rising: the first, the last, and the best of the average of each score and
        its neighbours (scores [tokens]; beyond the ends there are zeros, which count)."""
        ranked = pooled(scores, self.kernel, "average")
        ranked[: self.first] = np.inf
        ranked[max(0, len(ranked) - self.last) :] = np.inf
        return best(ranked, self.rows(len(scores)))

    def _observer(self, model: ModelInfo, see: See) -> Observer:
        return Observer(queries=1, layers=(self.chosen_layer(model),), see=see)


def last_query_scores(kv: LayerView, query: Floats) -> Floats:
    """[tokens] fp32: Σ over query heads of qᵀk_j, without softmax or 1/√d (§3). query: [heads, head_dim]."""
    group = kv.info.widths.group
    heads = [kv.keys(head) @ query[head * group : (head + 1) * group].T for head in range(kv.kv_heads)]
    total: Floats = np.concatenate(heads, axis=1).sum(axis=1)
    return total
