"""The models that draft in one engine: each is loaded once, and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TypeAlias

from thrifty.cache.slots.tiers import Tiers
from thrifty.decoding.draft_names import OwnDraft, own_draft
from thrifty.decoding.possible import Absent
from thrifty.decoding.services import ModelFacts
from thrifty.decoding.step_costs import StepCosts
from thrifty.engine.drafting.model import TAIL, EngineDraftModel
from thrifty.engine.plan.native_runner import choose_runner
from thrifty.engine.runner import CHUNK
from thrifty.errors import BudgetError, PromptError, RecipeError
from thrifty.models import load
from thrifty.models.adapters import Adapter
from thrifty.models.layer_subset import adapter_of_layers, with_layers
from thrifty.models.model import Model
from thrifty.models.store.converted_file import Fits
from thrifty.storage.budget import format_size

LoadDraft: TypeAlias = Callable[[str, Fits], Model]
"""A model of a name or path. It tells the bytes of all weights before it converts any; what that raises is raised."""
DRAFT = "draft"
"""Ledger category of drafting models, and of what they hold for each sequence."""


def load_draft(name: str, fits: Fits, copy: bool = True) -> Model:
    """A LoadDraft. copy: see `models.load`."""
    return load(name, copy=copy, fits=fits)


class DraftModels:
    """Loads models by name or path, or makes them of the engine's own (see `own_draft`), when a request first asks for
    them; they stay until the engine closes. costs: of the engine's own model's steps.
    """

    def __init__(self, own: Model, tiers: Tiers, load: LoadDraft, *, native: bool | None, batch: int) -> None:
        """own: the engine's model. tiers: whose ledger counts them. native: see Engine. batch: sequences that decode
        together.
        """
        self.costs = StepCosts()
        #: Gives an adapter of the engine by name; raises PromptError where there is none.
        self.adapter_of: Callable[[str], Adapter] = _no_adapters
        self._own = own
        self._tiers = tiers
        self._load = load
        self._native = native
        self._rows = max(CHUNK, TAIL * batch)
        self._models: dict[str, EngineDraftModel] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of their weights and workspaces."""
        return sum(model.nbytes for model in self._models.values())

    def require(self, names: Sequence[str], accepts: Fits) -> Mapping[str, EngineDraftModel]:
        """The models of these names. Raises CheckpointError where one cannot be loaded, BudgetError where it does not
        fit beside what the engine holds: before anything is converted. accepts: raises BudgetError where the bytes of
        one that is not there yet would leave too little to accepted requests.
        """
        return {name: self._models.get(name) or self._open(name, accepts) for name in names}

    def close(self) -> None:
        """Forget them all."""
        held, self._models = self.nbytes, {}
        self._tiers.ledger.credit(DRAFT, held)

    def forget_adapter(self, adapter: str) -> None:
        """Forget the models that run with an adapter of the engine: it goes, and nobody drafts with it any more."""
        for name, model in list(self._models.items()):
            if uses_adapter(name, adapter):
                del self._models[name]
                self._tiers.ledger.credit(DRAFT, model.nbytes)

    def _open(self, name: str, accepts: Fits) -> EngineDraftModel:
        def require_room(nbytes: int) -> None:
            self._require_room(name, nbytes)
            accepts(nbytes)

        own, adapter = own_draft(name), None
        if own is None:
            model = self._load(name, require_room)
        else:
            model, adapter = self._parts(own)
        if model.config.states:
            raise RecipeError(
                f"the draft model {name!r} has recurrent layers, which cannot go back to some of a draft's rows: draft "
                "with a model that attends in all its layers"
            )
        if model.config.mask_id is not None:
            raise RecipeError(
                f"the draft model {name!r} fills in masks and predicts no next token from those before: draft with a "
                "causal model"
            )
        weights = 0 if own is not None else model.nbytes - (0 if self._native is False else model.read_from_file)
        require_room(weights)  # a loader that had nothing to convert has not asked
        with ExitStack() as undo:
            self._charge(weights, undo)
            runner = choose_runner(model, native=self._native, rows=self._rows)
            draft = EngineDraftModel(model, weights, runner, facts_of(model), adapter)
            accepts(draft.nbytes)
            self._charge(draft.nbytes - weights, undo)
            undo.pop_all()
        self._models[name] = draft
        return draft

    def _parts(self, own: OwnDraft) -> tuple[Model, Adapter | None]:
        """Layers of the engine's own model, and its adapter as they take it: no array is copied."""
        adapter = None if own.adapter is None else self.adapter_of(own.adapter)
        if own.layers is None:
            return self._own, adapter
        return with_layers(self._own, own.layers), None if adapter is None else adapter_of_layers(adapter, own.layers)

    def _require_room(self, name: str, weights: int) -> None:
        """Raise BudgetError where a model's weights alone do not fit beside what cannot go."""
        self._tiers.make_room(weights)
        room = self._tiers.ledger.available
        if room is not None and weights > room:
            raise BudgetError(
                f"the draft model {name!r} has {format_size(weights)} of weights, and {format_size(room)} of the "
                f"budget are left beside what the engine holds: use {format_size(weights - room)} more of memory, or "
                "a smaller draft model"
            )

    def _charge(self, nbytes: int, undo: ExitStack) -> None:
        self._tiers.make_room(nbytes)
        self._tiers.ledger.charge(DRAFT, nbytes)
        undo.callback(self._tiers.ledger.credit, DRAFT, nbytes)


def uses_adapter(draft: str, adapter: str) -> bool:
    """Whether a model of this name drafts with an adapter of the engine."""
    own = own_draft(draft)
    return own is not None and own.adapter == adapter


def _no_adapters(name: str) -> Adapter:
    raise PromptError(f"there is no adapter {name!r:.80}")


def facts_of(model: Model) -> ModelFacts:
    """What strategies may know of a model. Reads its tokenizer."""
    config, tokenizer = model.config, model.tokenizer
    size = config.vocabulary_size
    absent = set(() if tokenizer is None else tokenizer.absent_ids(size))
    return ModelFacts(
        layers=len(config.layers),
        vocabulary_size=size,
        end_ids=frozenset(tokenizer.eos_ids if tokenizer else config.eos_ids),
        absent=Absent(absent | ({config.mask_id} if config.mask_id is not None else set())),
        context=config.context_length,
        mask_id=config.mask_id,
    )
