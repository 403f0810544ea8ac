"""What a strategy is given to work with: facts of the model, and other models that draft for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from thrifty.decoding.kept import Kept
from thrifty.decoding.possible import Absent
from thrifty.decoding.sampling import Sampler
from thrifty.decoding.scores import Scores
from thrifty.decoding.step_costs import StepCosts


@dataclass(frozen=True)
class ModelFacts:
    """What strategies ask of a model. layers: how many it has. absent: rows of its vocabulary that are no token.
    context: in tokens. mask_id: the token that a masked-diffusion model fills in (it is among the absent ones); None: a
    causal model.
    """

    layers: int
    vocabulary_size: int
    end_ids: frozenset[int]
    absent: Absent
    context: int
    mask_id: int | None = None

    @property
    def tokens(self) -> int:
        """Rows of the vocabulary that are tokens."""
        return self.vocabulary_size - len(self.absent.ids)


class DraftSequence(Protocol):
    """One sequence of a drafting model, with a cache of its own."""

    def follow(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Go on behind `tokens`, which begin with all that was given before: what it holds of them it keeps, what it
        drafted otherwise it forgets. Returns the last of them, one or two, which `DraftModel.run` is to compute; the
        others are computed here.
        """
        ...

    def catch_up(self, tokens: Sequence[int]) -> bool:
        """Whether no more than a piece is left of what `follow` would have to compute; where more is, do one here."""
        ...

    def close(self) -> None:
        """Free what it holds. A second call has no effect."""
        ...


class DraftModel(Protocol):
    """Another model that the engine runs for a strategy. It and its caches count as "draft" in the ledger."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def costs(self) -> StepCosts:
        """What its steps were measured to take."""
        ...

    def open(self) -> DraftSequence:
        """An empty sequence."""
        ...

    def run(self, rows: Sequence[tuple[DraftSequence, Sequence[int]]]) -> Scores:
        """Compute tokens of several sequences together, behind all that each holds. Scores are in the order of the
        rows, valid until the model's next call. On an exception these sequences forget what they drafted.
        """
        ...


@dataclass(frozen=True)
class Services:
    """What a strategy may use for one sequence.

    sampler: the sequence's own. models: those that the strategy named, by name. costs: what steps of the model itself
    were measured to take. kept: what `DecodingStrategy.keeps` asked for; None where the request shares nothing, or
    memory has no room for it.
    """

    facts: ModelFacts
    sampler: Sampler
    models: Mapping[str, DraftModel]
    costs: StepCosts
    kept: Kept | None = None
