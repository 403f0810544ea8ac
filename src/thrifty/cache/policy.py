"""What a cache policy is: the statistics it wants, the edits it returns, the bytes it promises.

A policy is a frozen dataclass without state: what it learns about a sequence lives in that sequence (statistics follow
their slots through every edit; `Stats.notes` is its own memory). It is called rarely: once a layer when a prompt ends,
then every `period` tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from thrifty.cache.edits import Edits
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.traits import Traits
from thrifty.errors import RecipeError
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thrifty.cache.model_info import LayerInfo, ModelInfo
    from thrifty.cache.page_selection import PageSelection
    from thrifty.cache.view import LayerView
    from thrifty.card import Card


BLOCK = 128
"""Tokens between two calls of a causal policy, counted from the sequence's first: what a prompt is computed by."""


class CachePolicy:
    """Base of every cache policy. Override what the method needs; the rest is the full cache.

    Policies act on `ModelInfo.policy_layers` only: a sliding-window layer holds its window whatever the recipe.
    """

    name: ClassVar[str]
    stage: ClassVar[str]
    card: ClassVar[Card]
    traits: ClassVar[Traits] = Traits()
    """What it is like; a class whose traits contradict each other or its methods is a TypeError where it is defined."""

    budgeted: ClassVar[str | None] = None
    """The option that may be "budget": as many slots a head as the request's own byte budget holds."""

    period: int = PAGE
    """Tokens between calls of after_decode."""

    causal: bool = False
    """True where `after_decode` stands for `after_prefill`: it acts at every multiple of 128 tokens, of the prompt as
    of the answer, and what is held then depends on the tokens before alone (see `thrifty.cache.checkpoints`)."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Raises TypeError where the class's traits contradict each other or its methods."""
        super().__init_subclass__(**options)
        problem = cls.traits.contradiction(
            compresses=cls.compresses is not CachePolicy.compresses or cls._overrides("after_prefill"),
            decodes=cls._overrides("after_decode"),
            stores=cls._overrides("stored"),
            selects=cls._overrides("selection"),
            asks=cls._overrides("wants"),
            option=any("causal" in vars(base).get("__annotations__", {}) for base in _below(cls)),
        )
        if problem is not None:
            raise TypeError(f"{cls.__qualname__}: its traits say {problem}")

    def check(self, model: ModelInfo) -> None:
        """Raise RecipeError where the model lacks what the method needs."""

    def wants(self, model: ModelInfo) -> Statistics:
        """The statistics that `after_prefill` and `after_decode` need."""
        return Statistics()

    def selection(self, model: ModelInfo) -> PageSelection | None:
        """What rows that decode attend to, where each selects pages for itself; None: everything."""
        return None

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Edits for one layer when its prompt is complete. `kv` and `stats` are valid during the call only."""
        return Edits()

    def for_prompt(self, model: ModelInfo, prompt: Sequence[int]) -> Self:
        """The policy as it acts on this prompt (token ids): where options follow from its tokens, with those options.
        It is asked once, before any byte is promised."""
        return self

    def check_prompt(self, model: ModelInfo, prompt: int) -> None:
        """Raise PromptError or RecipeError where a prompt of so many tokens cannot be compressed, with what can."""

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
    def interval(self) -> int:
        """Tokens between two calls of `after_decode`, at most."""
        return BLOCK if self.causal else self.period

    @property
    def head_group(self) -> int:
        """Of a policy that offloads: so many KV heads of a layer are read together."""
        return 1

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

    @property
    def open_capacity(self) -> bool:
        """True where its capacity is left to the request's byte budget, and not known yet."""
        return self.budgeted is not None and getattr(self, self.budgeted) == "budget"

    def with_capacity(self, slots: int) -> Self:
        """The same policy with so many slots a head. Only where `budgeted` names an option."""
        options: dict[str, Any] = {str(self.budgeted): slots}
        policy: Self = replace(cast("Any", self), **options)
        return policy

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
        return not self.causal and self._overrides("after_prefill")

    @property
    def watches_decode(self) -> bool:
        """True where `after_decode` does something."""
        return self._overrides("after_decode")

    @property
    def watches_prompt(self) -> bool:
        """True where it asks for statistics of the prompt's attention."""
        return self._overrides("wants")

    @classmethod
    def _overrides(cls, method: str) -> bool:
        """Whether the class has a method of its own."""
        return getattr(cls, method) is not getattr(CachePolicy, method)


def _below(cls: type[CachePolicy]) -> list[type]:
    """A policy's class and its bases up to `CachePolicy`, that one left out."""
    return list(cls.__mro__[: cls.__mro__.index(CachePolicy)])
