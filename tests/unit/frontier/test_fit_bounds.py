"""The bounds of a search hold from its beginning, and what cannot be made is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from tests.quiet import make_quiet
from tests.searches import CONTEXT, KIVI, LOOSE, MACHINE, RTN, candidates, fitted
from tests.tiny import tiny_model

from thrifty.engine.engine import Engine
from thrifty.errors import BudgetError, CheckpointError, ThriftyError
from thrifty.frontier.candidates import BASE, Candidate, Grid
from thrifty.frontier.explain import why, why_nothing
from thrifty.frontier.predict import predict
from thrifty.models import Model
from thrifty.recipe import Recipe
from thrifty.weights.technique import prepare


@pytest.fixture(scope="module", autouse=True)
def known_machine() -> Iterator[None]:
    """The machine is not measured anew for every search, and does nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thrifty.frontier.workshop.this_machine", lambda threads, sparing: MACHINE)
        make_quiet(patch)
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(packed=True)


def make_weights_by(function: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a function take the place of `prepare` wherever a search has techniques to apply."""

    def prepared(model: Model, techniques: Sequence[Any], **options: Any) -> Model:
        return function(model, techniques, **options) if techniques else model

    monkeypatch.setattr("thrifty.weights.technique.prepare", prepared)


def test_bytes_are_predicted_without_making_weights(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = [
        Candidate(Recipe(weights=[{"technique": "rtn", "bits": bits, "group": group}]), Grid.ON)
        for bits, group in ((4, 128), (4, 32), (8, 64))
    ]
    sizes = {one.key: prepare(model, one.recipe.techniques("weights")).nbytes for one in coarse}
    make_weights_by(untouched, monkeypatch)
    fit = fitted(model, LOOSE, [BASE, *coarse])
    fit.predict()
    assert {key: fit.predictions[key].need.weights for key in sizes} == sizes
    with pytest.raises(BudgetError, match=r"nothing fits 50 kB .* smallest recipe, rtn\(bits=4, group=128\), needs"):
        fitted(model, 50_000, [BASE, *coarse]).predict()


def untouched(*_: Any, **__: Any) -> Model:
    raise AssertionError("weights were made")


def test_plain_weights_are_predicted_as_they_will_be_packed() -> None:
    plain = tiny_model()
    rounded = Candidate(Recipe(weights=[RTN], cache=[KIVI]), Grid.ON)
    fit = fitted(plain, LOOSE, [BASE, rounded])
    fit.predict()
    engine = Engine(prepare(plain, rounded.recipe.techniques("weights")), threads=1, prefix_tree=False)
    assert fit.predictions[rounded.key].need == predict(engine, rounded, CONTEXT)
    engine.close()


@pytest.mark.parametrize("slow", ["weights", "steps"])
def test_the_time_holds_inside_a_measurement(model: Model, slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of work, of which less than one is begun."""
    seconds = 0.4
    if slow == "weights":
        make_weights_by(slowly_prepared, monkeypatch)
    else:
        monkeypatch.setattr(Engine, "step", lambda self, step=Engine.step: [time.sleep(0.05), step(self)][1])
    fit = fitted(model, LOOSE, minutes=seconds / 60)
    began = time.monotonic()
    rows = list(fit.rows())
    assert time.monotonic() - began < seconds + 3.0
    assert fit.finished and fit.unreached > 0 and not fit.skipped
    if not rows:
        assert "were too short to measure any of 5 recipes" in why_nothing(fit) and "--minutes 1" in why_nothing(fit)


def slowly_prepared(model: Model, techniques: Any, *, before: Callable[[], None], **_: Any) -> Model:
    for _ in range(200):
        time.sleep(0.05)
        before()
    return prepare(model, techniques)


def test_time_that_is_too_short_for_anything_is_said(model: Model) -> None:
    fit = fitted(model, LOOSE, minutes=1e-6)
    assert not list(fit.rows()) and fit.best is None
    assert why_nothing(fit) == (
        "1e-06 minutes were too short to measure any of 5 recipes that fit by their predictions; give it more, such as "
        "--minutes 1"
    )


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"weights": [{"technique": "rtn", "skip": ["nothing.*"]}]}, "skip 'nothing.*' matches no linear layer"),
    ({"weights": [{"technique": "rtn", "layers": [7]}]}, "layer 7 is outside 0..2"),
    ({"cache": [{"technique": "headkv", "capacity": 128}]}, "head probe"),
    ({"cache": [{"technique": "snapkv", "capacity": 2000}]}, "read no compressed segment"),
    ({"decoding": [{"technique": "speculative", "draft": "small"}]}, "'small' drafts for it: what a model that drafts"),
]


@pytest.mark.parametrize(("stages", "reason"), IMPOSSIBLE, ids=[reason for _, reason in IMPOSSIBLE])
def test_what_cannot_be_made_is_left_out_and_the_search_goes_on(
    model: Model, stages: dict[str, Any], reason: str
) -> None:
    wrong = Candidate(Recipe(**stages), Grid.ON if "weights" in stages else Grid.SHIPPED)
    fit = fitted(model, LOOSE, [BASE, wrong, *candidates()[1:2]])
    assert {row.candidate.key for row in fit.rows()} == {BASE.key, candidates()[1].key}
    ((skipped, told),) = fit.skipped
    assert skipped is wrong and reason in told


@pytest.mark.parametrize("error", [MemoryError(), ValueError("singular"), CheckpointError("no such layer")])
def test_weights_that_fail_while_they_are_made_are_left_out(
    model: Model, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Model:
        raise error

    make_weights_by(failing, monkeypatch)
    fit = fitted(model, LOOSE, candidates()[:5])
    list(fit.rows())
    assert {row.candidate.key for row in fit.measured} == {one.key for one in candidates()[:3]}
    assert [one for one, _ in fit.skipped] == candidates()[3:5]
    said = str(error) if isinstance(error, ThriftyError) else f"{type(error).__name__}: {error}"
    assert {reason for _, reason in fit.skipped} == {said}


def test_a_failure_of_the_uncompressed_model_ends_the_search(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise CheckpointError("the weights are gone")

    monkeypatch.setattr("thrifty.frontier.workshop.warm_up", failing)
    with pytest.raises(CheckpointError, match="the weights are gone"):
        list(fitted(model, LOOSE).rows())


def test_a_search_that_was_stopped_says_so_and_blames_no_time(model: Model) -> None:
    fit = fitted(model, LOOSE, candidates()[:2], minutes=60.0)
    rows = fit.rows()
    next(rows)
    rows.close()
    told = " ".join(why(fit))
    assert "was stopped before its end; the same command goes on" in told and "--minutes" not in told
    list(fit.rows())
    assert "stopped" not in " ".join(why(fit))
    untouched = fitted(model, LOOSE)
    assert "stopped before a recipe that fits was measured" in why_nothing(untouched)
