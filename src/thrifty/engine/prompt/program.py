"""The base of prompt programs: what they are asked before a request is taken, and what they do with its prompt.

A program runs a model over the prompt before the prompt is read: layers of the model itself, or a smaller one that
drafts. What it finds there decides which tokens are read at all, or which slots of the cache stay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np

from thrifty.errors import PromptError, RecipeError

if TYPE_CHECKING:
    from thrifty.arrays import Floats
    from thrifty.cache.model_info import ModelInfo
    from thrifty.cache.policy import CachePolicy
    from thrifty.card import Card
    from thrifty.decoding.services import ModelFacts
    from thrifty.engine.drafting.model import EngineDraftModel
    from thrifty.engine.prompt.observer import Observer

Result = TypeVar("Result")
Drafts: TypeAlias = "Mapping[str, EngineDraftModel]"
"""Models that draft, by name."""
Work: TypeAlias = Generator[None, None, Result]
"""Work that stops after every piece, so that others decode in between; at its end there is a result."""


class Forward(Protocol):
    """What a program may run. Everything is given back when the work is done, or closed in the middle."""

    def observe(self, tokens: Sequence[int], observer: Observer, layers: int) -> Work[None]:
        """The first `layers` layers of the request's own model over a prompt, one after the other. What the request
        says of its rows (adapter, steering) holds."""
        ...

    def observe_draft(self, name: str, tokens: Sequence[int], observer: Observer) -> Work[None]:
        """All layers of a model that drafts over a prompt, one after the other."""
        ...

    def draft(self, name: str, tokens: Sequence[int], count: int) -> Work[tuple[int, ...]]:
        """What a model that drafts says behind a prompt, greedily: at most `count` tokens, up to one that ends the
        answer, and that one."""
        ...


@dataclass(frozen=True)
class Read:
    """What a program makes of a prompt.

    tokens: ids that are read, at positions 0, 1 … ahead: ids that are read behind them for `policy` to see, and
    forgotten with the last of `tokens`, which is read once more then. policy: acts on the cache before all others, and
    lets go of the slots of what is forgotten; None: nothing is read ahead. kept: tokens, or slots a head, that stay.
    """

    tokens: tuple[int, ...]
    kept: int
    ahead: tuple[int, ...] = ()
    policy: CachePolicy | None = None


@dataclass(frozen=True, kw_only=True)
class ProgramTraits:
    """Facts of a program's class. drops_tokens: tokens of the prompt are not read, so that the others stand at other
    positions. control: it is no published method but what programs are compared with.
    """

    drops_tokens: bool = True
    control: bool = False


class PromptProgram(ABC):
    """Base of the techniques of stage "prompt". A frozen dataclass without state, one for all requests."""

    name: ClassVar[str]
    stage: ClassVar[str]
    card: ClassVar[Card]

    traits: ClassVar[ProgramTraits] = ProgramTraits()

    @property
    def models(self) -> tuple[str, ...]:
        """Names or paths of the models that draft."""
        return ()

    def check(  # noqa: B027  # most have nothing to check
        self, model: ModelInfo, facts: ModelFacts, drafts: Drafts
    ) -> None:
        """Raise RecipeError where the model, or one that drafts, lacks what the program needs."""

    def check_prompt(self, prompt: int, drafts: Drafts) -> None:  # noqa: B027
        """Raise PromptError where a prompt of so many tokens cannot be looked at, with what can."""

    @abstractmethod
    def applies(self, prompt: int) -> bool:
        """Whether a prompt of so many tokens is more than what stays of it. All others are read as they are."""

    @abstractmethod
    def rows(self, prompt: int) -> int:
        """The most rows that are read after a prompt of so many tokens was looked at."""

    def policy(self, prompt: int) -> CachePolicy | None:
        """What acts on the cache first, for the bytes that it promises; None: nothing does."""
        return None

    def observer(self, model: ModelInfo) -> Observer | None:
        """What looks at a pass of the request's own model: for the bytes that it takes. None: there is none."""
        return None

    def draft_bytes(self, prompt: int, drafts: Drafts) -> int:
        """The most bytes that models that draft hold for a prompt of so many tokens, weights and workspace aside."""
        return 0

    @abstractmethod
    def run(self, prompt: Sequence[int], model: ModelInfo, forward: Forward, answer: int) -> Work[Read]:
        """Look at a prompt that it applies to. answer: the most tokens of its answer."""


def check_numbers(name: str, scores: Floats) -> None:
    """Raise PromptError where scores are no numbers."""
    if not np.isfinite(scores).all():
        raise PromptError(
            f"{name}: {np.count_nonzero(~np.isfinite(scores))} of {scores.size} scores of the prompt are no numbers; "
            "the model that was looked at is broken: check its weights"
        )


def check_context(name: str, prompt: int, drafts: Drafts) -> None:
    """Raise PromptError where a model that drafts cannot hold a prompt of so many tokens, and one token more."""
    for model, draft in drafts.items():
        if prompt + 1 > draft.facts.context:
            raise PromptError(
                f"{name}: the prompt has {prompt} tokens, and the draft model {model!r} holds {draft.facts.context} "
                f"with one behind them; use at most {draft.facts.context - 1}, or a draft model with a longer context"
            )


def check_vocabulary(name: str, facts: ModelFacts, drafts: Drafts) -> None:
    """Raise RecipeError where a model that drafts has other tokens."""
    for model, draft in drafts.items():
        if draft.facts.tokens != facts.tokens:
            raise RecipeError(
                f"{name}: draft = {model!r} has a vocabulary of {draft.facts.tokens} tokens, the model one of "
                f"{facts.tokens}; use a smaller model of the same family"
            )


def refuse_recurrent(name: str, model: ModelInfo) -> None:
    """Raise RecipeError for a model with recurrent layers."""
    if model.state_layers:
        raise RecipeError(
            f"{name}: layer {model.state_layers[0]} of this model is recurrent, and {name} is about attention: it "
            "holds no key of a token that could be scored. Use a model that attends in all its layers, or leave "
            f"{name} out"
        )
