"""What a request becomes once it has passed its checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from thrifty.decoding.sampling import Sampler
from thrifty.decoding.services import DraftModel, ModelFacts, Services
from thrifty.decoding.strategy import DecodingStrategy, Drafter
from thrifty.engine.request import Request
from thrifty.engine.row_extra import RowExtra

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy


class SizedDraftModel(DraftModel, Protocol):
    """A model that drafts, and that says what it takes."""

    def sequence_bytes(self, total: int, rows: int) -> int:
        """The most bytes of a sequence of `total` tokens that drafts `rows` at once."""
        ...


@dataclass(frozen=True)
class Drafting:
    """What a request's strategy needs beside the cache: the facts of the model that it decodes, and the models that
    draft for it, by name.
    """

    strategy: DecodingStrategy
    facts: ModelFacts
    models: Mapping[str, SizedDraftModel] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The most rows of one sequence in a step."""
        return self.strategy.rows

    def nbytes(self, total: int) -> int:
        """The most bytes that the drafting models hold for a sequence that grows to `total` tokens."""
        return sum(model.sequence_bytes(total, self.rows) for model in self.models.values())

    def open(self, sampler: Sampler) -> Drafter:
        """The drafter of a sequence. Raises what the strategy raises."""
        return self.strategy.open(Services(self.facts, sampler, self.models))


@dataclass(frozen=True)
class Ticket:
    """A request that passed: its techniques, the longest answer it may give, and its sampler. extra: what its rows are
    beyond plain tokens, whichever they are.
    """

    request: Request
    policies: tuple[CachePolicy, ...]
    drafting: Drafting
    maximum_tokens: int
    sampler: Sampler
    extra: RowExtra | None = None
