"""What a request's strategy needs beside the cache: rows of a step, and other models that draft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from thrifty.decoding.sampling import Sampler
from thrifty.decoding.services import ModelFacts, Services
from thrifty.decoding.step_costs import StepCosts
from thrifty.decoding.strategy import DecodingStrategy, Drafter
from thrifty.engine.drafting.model import EngineDraftModel
from thrifty.engine.drafting.shelf import KeptShelf


class ReadingBytes(NamedTuple):
    """The most bytes that prompt programs hold before a prompt is read: of the request's own cache, with the hidden
    state that goes with it, and of models that draft, weights and workspace aside.
    """

    cache: int = 0
    drafts: int = 0


NOTHING = ReadingBytes()


@dataclass(frozen=True)
class Drafting:
    """A strategy, the facts of the model that it decodes, and the models that draft for it, by name.

    costs: of the model's own steps. shelf: what is kept from one answer to the next; salt: of the request, None where
    it shares nothing. reading: what the request's prompt programs hold at most, before anything is decoded.
    """

    strategy: DecodingStrategy
    facts: ModelFacts
    models: Mapping[str, EngineDraftModel] = field(default_factory=dict)
    costs: StepCosts = field(default_factory=StepCosts)
    shelf: KeptShelf | None = None
    salt: str | None = None
    reading: ReadingBytes = NOTHING

    @property
    def rows(self) -> int:
        """The most rows of one sequence in a step."""
        return self.strategy.rows

    def nbytes(self, total: int) -> int:
        """The most bytes that the drafting models hold for a sequence that grows to `total` tokens."""
        return sum(model.sequence_bytes(total, self.rows) for model in self.models.values())

    def open(self, sampler: Sampler) -> Drafter:
        """The drafter of a sequence. Raises what the strategy raises."""
        keeps, kept = self.strategy.keeps(self.facts), None
        if keeps is not None and self.shelf is not None and self.salt is not None:
            kept = self.shelf.find(self.salt, keeps)
        return self.strategy.open(Services(self.facts, sampler, self.models, self.costs, kept))
