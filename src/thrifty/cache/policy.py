"""What a cache policy is: the statistics it wants, the edits it returns, the bytes it promises.

A policy is a frozen dataclass without state: what it learns about a sequence lives in that sequence (statistics follow
their slots through every edit; `Stats.notes` is its own memory). It is called rarely: once a layer when a prompt ends,
then every `period` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from thrifty.cache.edits import Edits
from thrifty.cache.statistics import Statistics, Stats
from thrifty.errors import RecipeError
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.arrays import Floats
    from thrifty.cache.footprint import Footprint
    from thrifty.cache.model_info import LayerInfo, ModelInfo
    from thrifty.cache.view import LayerView
    from thrifty.cache.watching.rehearsal import Rehearsal
    from thrifty.card import Card

Reduction = Literal["max", "mean"]
"""What one slot gets from a row by a KV head's query heads: the greatest of theirs, or their mean."""


class CachePolicy:
    """Base of every cache policy. Override what the method needs; the rest is the full cache.

    Policies apply to global layers only: a sliding-window layer holds its window whatever the recipe.
    """

    name: ClassVar[str]
    stage: ClassVar[str]
    card: ClassVar[Card]
    exact: ClassVar[bool] = False
    """True where the method reads exact keys or values: it must come before a policy that quantises."""
    quantises: ClassVar[bool] = False
    """True where the method stores slots in a format of less than 16 bits."""
    ragged: ClassVar[bool] = False
    """True where the heads of a layer may keep different numbers of slots."""
    uniform: ClassVar[bool] = False
    """True where the method counts a layer's slots for all heads alike: nothing ragged can come before it."""
    biases: ClassVar[bool] = False
    """True where slots may get a logit bias."""
    whole_pages: ClassVar[bool] = False
    """True where evictions while decoding let go of whole pages only (so that they free quantised pages too)."""
    rehearses: ClassVar[bool] = False
    """True where the method runs the model behind the whole prompt before it decides: the prompt is kept in full until
    then, `rehearse`, `rehearsed` and `witness` say how, and `after_prompt` stands for `after_prefill`."""

    budgeted: ClassVar[str | None] = None
    """The option that may be "budget": as many slots a head as the request's own byte budget holds."""

    period: int = PAGE
    """Tokens between calls of after_decode."""

    def check(self, model: ModelInfo) -> None:
        """Raise RecipeError where the model lacks what the method needs."""

    def wants(self, model: ModelInfo) -> Statistics:
        """The statistics that `after_prefill` and `after_decode` need."""
        return Statistics()

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Edits for one layer when its prompt is complete. `kv` and `stats` are valid during the call only."""
        return Edits()

    def check_prompt(self, model: ModelInfo, prompt: int) -> None:
        """Raise PromptError or RecipeError where a prompt of so many tokens cannot be compressed, with what can."""

    def rehearse(self, model: ModelInfo, prompt: Sequence[int], first: int) -> list[Rehearsal]:
        """What to force behind the prompt (token ids) to learn what matters of its tokens from `first` on."""
        return []

    def rehearsed(self, model: ModelInfo, prompt: int) -> int:
        """Upper bound of the rows of one rehearsal of a prompt of so many tokens."""
        return 0

    def witness(self, model: ModelInfo, queries: Floats, keys: Floats, seen: slice) -> Floats:
        """Scores fp32 [slots of `seen`] that some forced rows give; the greatest of all rows stays.

        queries: [group, rows, head_dim] fp32, rotated, of one KV head. keys: [slots, head_dim] fp32: sinks, the slots
        that are rehearsed (`seen`), and the forced rows up to these, which are the last.
        """
        raise NotImplementedError

    @property
    def reduction(self) -> Reduction | None:
        """How `witness` reduces a KV head's query heads, row by row, where it is the rows' greatest softmax attention,
        which native code computes too; None where it is a formula of its own."""
        return None

    def after_prompt(self, layers: list[LayerView], received: list[list[Floats]]) -> Edits:
        """Edits for all global layers at once when the rehearsals are over. received: by layer and KV head the scores
        fp32 [slots]; infinite where a slot was not rehearsed.
        """
        return Edits()

    def after_decode(self, layers: list[LayerView], stats: list[Stats]) -> Edits | None:
        """Edits for all global layers' sealed slots (the open page of up to 63 is not among them), every `period`
        committed tokens after the prompt. None: nothing to do.
        """
        return None

    def kept(self, prompt: int, generated: int = 0) -> int:
        """Upper bound of a head's sealed slots (mean over global layers and heads) after a prompt of `prompt` tokens
        and `generated` more, just before the next `after_decode`."""
        return prompt + generated

    def kept_in_layer(self, prompt: int, generated: int = 0) -> int:
        """`kept` of the layer that keeps most (mean over its heads). Override it where layers differ."""
        return self.kept(prompt, generated)

    @property
    def separate_slots(self) -> int:
        """How many of a head's slots lie in a segment of their own, with their first keys beside them where the method
        renumbers them."""
        return 0

    @property
    def renumbers(self) -> bool:
        """True where keys are rotated to other positions, which then count rows."""
        return False

    def stored(self, slots: int) -> dict[str, int]:
        """How many of a head's `slots` lie in which format, at worst; "" stands for the format they had."""
        return {"": slots}

    def footprint(self, model: ModelInfo, prompt: int, total: int) -> Footprint:
        """Upper bound of the bytes of a sequence with this policy alone: `prompt` tokens grown to `total`."""
        from thrifty.cache.footprint import footprint

        return footprint([self], model, prompt, total)

    @property
    def open_capacity(self) -> bool:
        """True where its capacity is left to the request's byte budget, and not known yet."""
        return self.budgeted is not None and getattr(self, self.budgeted) == "budget"

    def with_capacity(self, slots: int) -> Self:
        """The same policy with so many slots a head. Only where `budgeted` names an option."""
        options: dict[str, Any] = {str(self.budgeted): slots}
        found: Self = replace(cast("Any", self), **options)
        return found

    def known(self, slots: int | str) -> int:
        """The value of the `budgeted` option. Raises RecipeError where it is left to a budget that nobody gave."""
        if isinstance(slots, str):
            raise RecipeError(
                f'{self.name}: {self.budgeted} = "budget" is only known for a request with a byte budget of its own '
                f"(cache_bytes); write a number for {self.budgeted} here"
            )
        return slots

    @property
    def compresses(self) -> bool:
        """True where the prompt is changed when it ends."""
        return self.rehearses or type(self).after_prefill is not CachePolicy.after_prefill

    @property
    def watches_decode(self) -> bool:
        """True where `after_decode` does something."""
        return type(self).after_decode is not CachePolicy.after_decode
