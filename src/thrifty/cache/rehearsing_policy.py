"""The base of policies that run the model behind the whole prompt before they decide what to keep of it.

The prompt is computed in full first. Rows are then forced behind it, piece by piece; what they attend to is scored, and
they are dropped. `thrifty.cache.rehearsals` has the calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from thrifty.cache.policy import CachePolicy

if TYPE_CHECKING:
    from thrifty.arrays import Floats
    from thrifty.cache.edits import Edits
    from thrifty.cache.model_info import ModelInfo
    from thrifty.cache.statistics import Rehearsal
    from thrifty.cache.view import LayerView

Reduction = Literal["max", "mean"]
"""What one slot gets from a row by a KV head's query heads: the greatest of theirs, or their mean."""


class RehearsingPolicy(CachePolicy, ABC):
    """Override all but `reduction`. `after_prompt` stands for `after_prefill`; nothing may compress before it."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Raises TypeError where the class overrides what a rehearsing policy is never asked."""
        super().__init_subclass__(**options)
        if cls.after_prefill is not CachePolicy.after_prefill:
            raise TypeError(f"{cls.__qualname__} rehearses: `after_prompt` stands for `after_prefill`; write that")

    @abstractmethod
    def rehearsals(self, model: ModelInfo, prompt: Sequence[int], first: int) -> list[Rehearsal]:
        """What to force behind the prompt (token ids) to learn what matters of its tokens from `first` on."""

    @abstractmethod
    def rehearsal_rows(self, model: ModelInfo, prompt: int) -> int:
        """Upper bound of the rows of one rehearsal of a prompt of so many tokens."""

    @abstractmethod
    def score_rows(self, model: ModelInfo, queries: Floats, keys: Floats, seen: slice) -> Floats:
        """Scores fp32 [slots of `seen`] that some forced rows give; the greatest of all rows stays.

        queries: [group, rows, head_dim] fp32, rotated, of one KV head. keys: [slots, head_dim] fp32: sinks, the slots
        that are rehearsed (`seen`), and the forced rows up to these, which are the last.
        """

    @property
    def reduction(self) -> Reduction | None:
        """How `score_rows` reduces a KV head's query heads, row by row, where it is the rows' greatest softmax
        attention, which native code computes too; None where it is a formula of its own."""
        return None

    @abstractmethod
    def after_prompt(self, layers: list[LayerView], scores: list[list[Floats]]) -> Edits:
        """Edits for all layers that policies act on, at once, when the rehearsals are over. scores: by layer and KV
        head fp32 [slots]; infinite where a slot was not rehearsed.
        """

    @property
    def compresses(self) -> bool:
        """True: the prompt is changed when its rehearsals end."""
        return True
