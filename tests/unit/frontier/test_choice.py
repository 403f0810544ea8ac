"""Which row wins, and what is said where none can."""

from __future__ import annotations

from thrifty.evaluation.quality import Quality
from thrifty.evaluation.recovery import Interval
from thrifty.frontier import choice
from thrifty.frontier.candidates import Candidate, Grid
from thrifty.frontier.measurement import Measurement, Need, on_frontier
from thrifty.recipe import Recipe

MB = 10**6


def row(
    name: str, *, peak: int, kl: float | None, decode: float = 100.0, fits: bool = True, grid: Grid = Grid.SHIPPED
) -> Measurement:
    exactly = Interval(kl or 0.0, kl or 0.0, kl or 0.0)
    return Measurement(
        candidate=Candidate(Recipe(name=name), grid),
        need=Need(peak - 2 * MB, MB, MB, MB),
        fits=fits,
        prompt=1024,
        ledger_peak=peak,
        ledger_steady=peak,
        process_peak=peak,
        prefill_rate=1000.0,
        decode_rate=decode,
        quality=None if kl is None else Quality(exactly, exactly, None, 2.0, 256),
    )


def test_the_least_divergence_that_fits_wins() -> None:
    rows = [
        row("baseline", peak=191 * MB, kl=None, fits=False),
        row("close", peak=140 * MB, kl=0.01),
        row("far", peak=90 * MB, kl=0.2, decode=300.0),
    ]
    assert choice.best(rows) is rows[1]


def test_a_tie_goes_to_the_faster() -> None:
    rows = [row("slow", peak=100 * MB, kl=0.01), row("fast", peak=120 * MB, kl=0.01 + choice.TIE / 2, decode=150.0)]
    assert choice.best(rows) is rows[1]
    clear = row("fast but worse", peak=100 * MB, kl=0.01 + 3 * choice.TIE, decode=500.0)
    assert choice.best([*rows, clear]) is rows[1]


def test_the_uncompressed_model_wins_where_it_fits() -> None:
    rows = [row("baseline", peak=191 * MB, kl=None), row("close", peak=140 * MB, kl=0.01, decode=500.0)]
    assert choice.best(rows) is rows[0]


def test_off_grid_rows_and_rows_that_do_not_fit_cannot_win() -> None:
    rows = [row("off", peak=90 * MB, kl=0.0, grid=Grid.OFF), row("big", peak=200 * MB, kl=0.0, fits=False)]
    assert choice.best(rows) is None
    assert choice.best([]) is None


def test_the_frontier_leaves_out_what_another_row_beats() -> None:
    good = row("good", peak=100 * MB, kl=0.01)
    beaten = row("beaten", peak=110 * MB, kl=0.02, decode=90.0)
    small = row("small", peak=80 * MB, kl=0.3)
    off = row("off", peak=10 * MB, kl=0.0, decode=900.0, grid=Grid.OFF)
    rows = [good, beaten, small, off]
    assert [on_frontier(one, rows) for one in rows] == [True, False, True, False]


def test_where_nothing_fits_the_message_says_by_how_much_and_what_would() -> None:
    needs = [("a + b", Need(70 * MB, 5 * MB, 20 * MB, 15 * MB)), ("big", Need(100 * MB, 5 * MB, 90 * MB, 90 * MB))]
    message = str(choice.refuse(needs, 90 * MB, 4096, 1800))
    assert message == (
        "nothing fits 90 MB at context 4096: the smallest recipe, a + b, needs 95 MB (70 MB weights, 20 MB cache, "
        "5 MB workspace), 5 MB more. It would fit with --memory 95MB, or with --context 1800."
    )
    assert str(choice.refuse(needs, 50 * MB, 4096, 0)).endswith("--memory 95MB; no context is short enough.")
