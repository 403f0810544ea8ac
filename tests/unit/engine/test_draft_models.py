"""Models that draft: whose names are taken, and what is loaded where memory does not do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint import write_checkpoint
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.conftest import MakeEngine

from thrifty.api import Thrifty, open_engine
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.drafting.model import EngineDraftSequence
from thrifty.engine.request import Request
from thrifty.errors import BudgetError, CheckpointError, RecipeError
from thrifty.models import load
from thrifty.models.model import Model
from thrifty.models.store.copies import copies
from thrifty.recipe import Recipe

pytestmark = pytest.mark.usefixtures("cache")
SAMPLING = SamplingParameters(max_tokens=12, ignore_eos=True)


def table(draft: str | Path) -> list[dict[str, Any]]:
    """A recipe's decoding."""
    return [{"technique": "speculative", "draft": str(draft), "length": 3}]


def ask(draft: str | Path | None = None) -> Request:
    return Request(prompt=text_tokens(40), sampling=SAMPLING, decoding=None if draft is None else table(draft))


class Loader:
    """Loads given models and notes their names."""

    def __init__(self, **models: Model) -> None:
        self.models, self.names = models, list[str]()

    def __call__(self, name: str, fits: Callable[[int], None]) -> Model:
        self.names.append(name)
        fits(self.models[name].nbytes)
        return self.models[name]


def test_a_request_alone_loads_no_model(make_engine: MakeEngine, packed: Model, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other")
    loader = Loader(small=packed, own=packed)
    engine = make_engine(packed, drafts=["small"], load_draft=loader)
    for name in (str(other), "smollm2-135m", "owner/name", "no-such"):
        with pytest.raises(RecipeError, match=r"is no model that requests .* Known: small\. .* allow it: drafts=\("):
            engine.submit(ask(name))
    assert loader.names == [] and engine.memory.ledger.bytes_of("draft") == 0
    plain = engine.submit(ask()).result().token_ids
    assert engine.submit(ask("small")).result().token_ids == plain
    assert loader.names == ["small"]


def test_the_engines_own_draft_is_taken_of_requests_too(make_engine: MakeEngine, packed: Model) -> None:
    loader = Loader(own=packed)
    engine = make_engine(packed, decoding=table("own"), load_draft=loader)
    assert engine.submit(ask("own")).result().token_ids == engine.submit(ask()).result().token_ids
    with pytest.raises(RecipeError, match=r"draft = 'small' is no model .* Known: own\."):
        engine.submit(ask("small"))
    assert loader.names == ["own"]


def test_a_recipe_names_its_draft_through_every_door(tmp_path: Path) -> None:
    target, small = write_checkpoint(tmp_path / "target"), write_checkpoint(tmp_path / "small", seed=1)
    with Thrifty(target, recipe={"decoding": table(small)}) as model:
        assert model.engine.memory.drafts.nbytes > 0
        drafted = model.generate(text_tokens(40), max_tokens=12, ignore_eos=True).token_ids
    with Thrifty(target, drafts=(str(small),)) as model:
        assert model.engine.memory.drafts.nbytes == 0
        assert model.engine.submit(ask(small)).result().token_ids == drafted


def test_a_draft_that_does_not_fit_is_refused_before_it_is_converted(make_engine: MakeEngine, tmp_path: Path) -> None:
    small, model = write_checkpoint(tmp_path / "small", seed=1), tiny_model(packed=True)
    free = make_engine(model)
    base = model.nbytes + free.memory.workspace + free.memory.footprint((), 40, 52).peak_bytes
    engine = make_engine(model, memory=base, drafts=(str(small),))
    before = engine.memory.ledger.current
    for _ in range(2):
        with pytest.raises(BudgetError, match=r"the draft model .* has .* of weights, and .* are left .* use .* more"):
            engine.submit(ask(small))
    assert copies() == [] and engine.memory.ledger.current == before
    assert engine.submit(ask()).result().token_ids == free.submit(ask()).result().token_ids


def test_a_converted_draft_that_does_not_fit_gets_no_plan(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.engine.drafting import models

    small, model = write_checkpoint(tmp_path / "small", seed=1), tiny_model(packed=True)
    load(small)
    free = make_engine(model)
    base = model.nbytes + free.memory.workspace + free.memory.footprint((), 40, 52).peak_bytes
    engine = make_engine(model, memory=base, drafts=(str(small),))
    monkeypatch.setattr(models, "choose_runner", None)
    with pytest.raises(BudgetError, match="the draft model"):
        engine.submit(ask(small))


def test_a_draft_whose_plan_fails_gives_its_charge_back(
    make_engine: MakeEngine, packed: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.engine.drafting import models

    engine = make_engine(packed, drafts=("small",), load_draft=Loader(small=packed))
    before = engine.memory.ledger.current

    def failing(*arguments: Any, **options: Any) -> Any:
        assert engine.memory.ledger.bytes_of("draft") == packed.nbytes, "charged before it is made"
        raise CheckpointError("no plan")

    monkeypatch.setattr(models, "choose_runner", failing)
    with pytest.raises(CheckpointError, match="no plan"):
        engine.submit(ask("small"))
    assert engine.memory.ledger.current == before


def test_without_copies_a_draft_leaves_none(tmp_path: Path) -> None:
    target, small = write_checkpoint(tmp_path / "target"), write_checkpoint(tmp_path / "small", seed=1)
    recipe = Recipe(decoding=table(small))
    engine = open_engine(target, recipe, copy=False)
    assert engine.memory.drafts.nbytes > 0
    engine.close()
    assert copies() == []
    open_engine(target, recipe).close()
    assert len(copies()) == 2


@pytest.mark.parametrize("steps", [0, 3])
def test_a_draft_never_ends_an_accepted_request(make_engine: MakeEngine, packed: Model, steps: int) -> None:
    """It is refused while another could not end beside it, and taken once that is over."""
    loader, options = Loader(small=packed), {"drafts": ["small"], "prefix_tree": False}
    free = make_engine(packed, load_draft=loader, **options)
    free.submit(ask("small")).result()
    draft = free.memory.drafts.nbytes
    room = packed.nbytes + free.memory.workspace + draft + free.memory.footprint((), 10, 1000).peak_bytes - 1
    engine = make_engine(packed, memory=room, load_draft=loader, **options)
    sampling = SamplingParameters(max_tokens=990, ignore_eos=True)
    handle = engine.submit(Request(prompt=text_tokens(10), sampling=sampling))
    for _ in range(steps):
        engine.step()
    with pytest.raises(BudgetError, match="a model that drafts of .* to an accepted request"):
        engine.submit(ask("small"))
    assert engine.memory.ledger.bytes_of("draft") == 0
    assert len(handle.result().token_ids) == 990
    assert engine.submit(ask("small")).result().finish_reason == "length"


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_others_decode_while_a_draft_model_reads_a_long_prompt(
    temperature: float, make_engine: MakeEngine, packed: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One piece of it a step, and not a bit of any answer changes."""
    pieces: list[int] = []
    compute = EngineDraftSequence._compute

    def counted(sequence: EngineDraftSequence, tokens: Sequence[int]) -> None:
        compute(sequence, tokens)
        pieces.append(sequence.length)

    monkeypatch.setattr(EngineDraftSequence, "_compute", counted)
    sampling = SamplingParameters(max_tokens=12, ignore_eos=True, temperature=temperature, seed=5)
    long = Request(prompt=text_tokens(600, 3), sampling=sampling, decoding=table("small"))
    short = Request(prompt=text_tokens(40), sampling=SamplingParameters(max_tokens=40, ignore_eos=True))
    options: dict[str, Any] = {"drafts": ["small"], "load_draft": Loader(small=tiny_model(packed=True, seed=1))}
    wanted = [make_engine(packed, **options).submit(request).result().token_ids for request in (long, short)]
    pieces.clear()
    engine = make_engine(packed, **options)
    handles = [engine.submit(long), engine.submit(short)]
    beside = 0
    while not all(handle.finished for handle in handles):
        before = len(pieces)
        events = engine.step()
        assert len(pieces) <= before + 1
        others = [event for event in events if event.request == handles[1].identity and event.token is not None]
        beside += len(pieces) > before and bool(others)
    assert beside >= 3 and pieces[:5] == [128, 256, 384, 512, 600]
    assert [handle.result().token_ids for handle in handles] == wanted
