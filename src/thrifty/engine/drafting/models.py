"""The models that draft in one engine: each is loaded once, and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from thrifty.cache.slots.tiers import Tiers
from thrifty.decoding.possible import Absent
from thrifty.decoding.services import ModelFacts
from thrifty.engine.drafting.model import TAIL, EngineDraftModel
from thrifty.engine.plan.native_runner import choose_runner
from thrifty.engine.runner import CHUNK
from thrifty.errors import RecipeError
from thrifty.models.model import Model

DRAFT = "draft"
"""Ledger category of drafting models, and of what they hold for each sequence."""


class DraftModels:
    """Loads models by name or path when a request first asks for them; they stay until the engine closes."""

    def __init__(self, tiers: Tiers, load: Callable[[str], Model], *, native: bool | None, batch: int) -> None:
        """tiers: whose ledger counts them. load: a model of a name or path. native: see Engine. batch: sequences that
        decode together.
        """
        self._tiers = tiers
        self._load = load
        self._native = native
        self._rows = max(CHUNK, TAIL * batch)
        self._models: dict[str, EngineDraftModel] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of their weights and workspaces."""
        return sum(model.nbytes for model in self._models.values())

    def require(self, names: Sequence[str]) -> Mapping[str, EngineDraftModel]:
        """The models of these names. Raises CheckpointError where one cannot be loaded, BudgetError where it does not
        fit beside what the engine holds.
        """
        return {name: self._models.get(name) or self._open(name) for name in names}

    def close(self) -> None:
        """Forget them all."""
        held, self._models = self.nbytes, {}
        self._tiers.ledger.credit(DRAFT, held)

    def _open(self, name: str) -> EngineDraftModel:
        model = self._load(name)
        if model.config.states:
            raise RecipeError(
                f"the draft model {name!r} has recurrent layers, which cannot go back to some of a draft's rows: draft "
                "with a model that attends in all its layers"
            )
        runner = choose_runner(model, native=self._native, rows=self._rows)
        draft = EngineDraftModel(model, runner, facts_of(model))
        self._tiers.make_room(draft.nbytes)
        self._tiers.ledger.charge(DRAFT, draft.nbytes)
        self._models[name] = draft
        return draft


def facts_of(model: Model) -> ModelFacts:
    """What strategies may know of a model. Reads its tokenizer."""
    config, tokenizer = model.config, model.tokenizer
    size = config.vocabulary_size
    return ModelFacts(
        layers=len(config.layers),
        vocabulary_size=size,
        end_ids=frozenset(tokenizer.eos_ids if tokenizer else config.eos_ids),
        absent=Absent(() if tokenizer is None else tokenizer.absent_ids(size)),
        context=config.context_length,
    )
