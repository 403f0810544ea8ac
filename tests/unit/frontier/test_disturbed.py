"""Speeds that other work disturbed: measured again, and never told as a fact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.searches import LOOSE, MACHINE, fitted
from tests.tiny import tiny_model

from thrifty.evaluation.measuring.noise import DISTURBED, Noise
from thrifty.frontier.candidates import BASE
from thrifty.frontier.choice import best
from thrifty.frontier.explain import why
from thrifty.frontier.fit import Fit
from thrifty.frontier.workshop import PATIENCE


class Neighbour:
    """Other work that takes these shares of the processors in one span after the other, then the last for ever."""

    def __init__(self, *shares: float) -> None:
        self.shares = list(shares)
        self.spans = 0

    @contextmanager
    def listening(self) -> Iterator[Noise]:
        """In the place of `noise.listening`."""
        share = self.shares[min(self.spans, len(self.shares) - 1)]
        self.spans += 1
        yield Noise(share)


def searched(monkeypatch: pytest.MonkeyPatch, *shares: float) -> tuple[Fit, Neighbour]:
    neighbour = Neighbour(*shares)
    monkeypatch.setattr("thrifty.frontier.workshop.this_machine", lambda threads, sparing: MACHINE)
    monkeypatch.setattr("thrifty.frontier.workshop.listening", neighbour.listening)
    fit = fitted(tiny_model(packed=True), LOOSE)
    list(fit.rows())
    return fit, neighbour


@pytest.fixture(scope="module")
def quiet() -> tuple[Fit, Neighbour]:
    """A search beside which nothing runs."""
    with pytest.MonkeyPatch.context() as patch:
        return searched(patch, 0.0)


def test_a_disturbed_run_is_made_again_and_the_quiet_one_counts(
    quiet: tuple[Fit, Neighbour], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, neighbour = searched(monkeypatch, 0.5, 0.0)
    assert neighbour.spans == quiet[1].spans + 1
    assert all(row.quiet for row in fit.measured)
    assert all(row.as_dict()["decode_tok_s"] for row in fit.measured)


def test_where_quiet_cannot_be_had_the_prediction_stands_and_is_called_one(
    quiet: tuple[Fit, Neighbour], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, neighbour = searched(monkeypatch, 0.4)
    repeated = neighbour.spans - quiet[1].spans
    assert 0 < repeated <= 2 * PATIENCE, "after some repetitions in vain none is made any more, on the grid and off it"
    for row in fit.measured:
        assert not row.quiet and row.others > DISTURBED
        values = row.as_dict()
        assert values["decode_tok_s"] is None and values["prefill_tok_s"] is None and values["others_share"] == 0.4
        assert values["predicted_decode_tok_s"] == pytest.approx(row.rate_from_bytes, abs=0.01)
        assert row.step == row.predicted, "the bound on latency is held against the prediction"
    said = " ".join(why(fit))
    assert "Other work took 40% of the processors, so no speed was measured; by the bytes it reads" in said
    assert "It decodes" not in said and "at most" in said


def test_equals_are_told_apart_by_their_bytes_where_a_speed_was_disturbed(quiet: tuple[Fit, Neighbour]) -> None:
    import dataclasses

    fit, _ = quiet
    row = fit.row(BASE, 0)
    assert row is not None and row.predicted is not None
    slow = dataclasses.replace(row, decode_rate=10.0)
    light = dataclasses.replace(row, decode_rate=5.0, predicted=row.predicted / 2)
    assert best([slow, light]) is slow, "quiet: the faster as measured"
    assert best([dataclasses.replace(slow, others=0.2), light]) is light, "disturbed: the one that reads less"
