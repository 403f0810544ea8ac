"""Which rounds count: voids, time, failures, and a run that goes on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest
from benchmarks.comparison.figures import Sample, figures
from benchmarks.comparison.processes import WorkerError, WorkerProcess
from benchmarks.comparison.program import main, parse
from benchmarks.comparison.quiet import Disturbance, disturbance, usage_of_others
from benchmarks.comparison.rounds import Plan, TooNoisy, entries, run_rounds, screen
from benchmarks.comparison.session import Session
from benchmarks.comparison.state import State, resume
from benchmarks.comparison.variants import MAIN, Cell, Variant

FIELD = [Variant("thrifty", MAIN), Variant("llama.cpp", "Q4_0"), Variant("llama.cpp", "Q8_0")]
SHORT, LONG = Cell(128), Cell(6144)


class Scripted(Session):
    """Rates by variant and cell instead of workers; records who was asked."""

    def __init__(self, rates: dict[tuple[str, Cell], tuple[float, float]], seconds: float = 1000.0) -> None:
        notes: list[str] = []
        super().__init__(State({}), {}, threads=1, steps=1, deadline=time.perf_counter() + seconds, note=notes.append)
        self.rates, self.notes, self.asked = rates, notes, list[tuple[str, Cell, bool]]()

    def measure(self, variant: Variant, cell: Cell, number: int, *, reuse: bool = False) -> Sample | None:
        self.asked.append((variant.key, cell, reuse))
        found = self.rates.get((variant.key, cell))
        return found and Sample(variant.key, cell, number, found[0], None if reuse else found[1], 1)


RATES = {
    (variant.key, cell): rates
    for cell in (SHORT, LONG)
    for variant, rates in zip(FIELD, [(9.0, 9.0), (5.0, 2.0), (4.0, 3.0)], strict=True)
}


def plan(**changes: object) -> Plan:
    found = {"field": FIELD, "cells": [SHORT, LONG], "figures": figures([SHORT, LONG], MAIN), "rounds": 3}
    return Plan(**(found | {"long_rounds": 1, "voids": 2} | changes))  # type: ignore[arg-type]


def shares(*found: float) -> Callable[[], AbstractContextManager[Disturbance]]:
    left = iter(found)

    @contextmanager
    def listen() -> Iterator[Disturbance]:
        yield Disturbance(next(left, 0.0), worst="other")

    return listen


def nothing() -> None:
    pass


def counted(session: Scripted, cell: Cell, variant: Variant = FIELD[0]) -> int:
    return sum(s.round > 0 and s.cell == cell and s.variant == variant.key for s in session.state.samples)


def test_screening_asks_everyone_once_and_rounds_the_winners_only() -> None:
    rates = RATES | {(FIELD[2].key, SHORT): (4.0, 1.0), (FIELD[2].key, LONG): (4.0, 1.0)}
    session = Scripted(rates)
    screen(session, plan(), nothing)
    assert len(session.asked) == 6
    session.asked.clear()
    run_rounds(session, plan(), nothing, shares())
    assert {key for key, _, _ in session.asked} == {FIELD[0].key, FIELD[1].key}
    assert (counted(session, SHORT), counted(session, LONG)) == (3, 1)


def test_when_time_is_short_every_engine_has_its_first_variant_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Scripted(RATES)
    times = iter([1000.0, 1000.0] + [500.0] * 9)
    monkeypatch.setattr(Scripted, "left", property(lambda self: next(times)))
    screen(session, plan(), nothing)
    assert {key for key, _, _ in session.asked} == {FIELD[0].key, FIELD[1].key}
    assert any(FIELD[2].key in line and "not screened" in line for line in session.notes)


def test_a_quick_run_screens_short_contexts_of_peers_only() -> None:
    session = Scripted(RATES)
    screen(session, plan(quick=True), nothing)
    assert {(key, cell) for key, cell, _ in session.asked} == {(variant.key, SHORT) for variant in FIELD[1:]}
    found = {entry.variant.key for entry in entries(plan(quick=True), session.state.samples, LONG)}
    assert found == {variant.key for variant in FIELD}


def test_who_wins_decoding_only_does_not_prefill_again() -> None:
    session = Scripted(RATES)
    screen(session, plan(), nothing)
    found = {entry.variant.key: entry.reuse for entry in entries(plan(), session.state.samples, SHORT)}
    assert found == {FIELD[0].key: False, FIELD[1].key: True, FIELD[2].key: False}


def test_rounds_alternate() -> None:
    session = Scripted(RATES)
    screen(session, plan(), nothing)
    session.asked.clear()
    run_rounds(session, plan(cells=[SHORT], rounds=2), nothing, shares())
    order = [key for key, _, _ in session.asked]
    assert order[3:] == order[2::-1]


def test_a_void_round_is_repeated_and_leaves_nothing() -> None:
    session = Scripted(RATES)
    screen(session, plan(), nothing)
    session.asked.clear()
    run_rounds(session, plan(cells=[SHORT]), nothing, shares(0.0, 0.02, 0.009))
    assert session.state.voids == 1
    assert counted(session, SHORT) == 3
    assert len(session.asked) == 4 * 3
    assert any("void" in line and "other" in line for line in session.notes)


def test_too_many_voids_end_the_run_with_what_to_do() -> None:
    session = Scripted(RATES)
    screen(session, plan(), nothing)
    with pytest.raises(TooNoisy, match=r"3 rounds are void, more than --voids 2: .*'other'.*--resume.*--allow-noise"):
        run_rounds(session, plan(), nothing, shares(*[0.5] * 9))
    assert counted(session, SHORT) == 0


def test_noise_can_be_allowed() -> None:
    session = Scripted(RATES)
    screen(session, plan(), nothing)
    run_rounds(session, plan(allow_noise=True), nothing, shares(*[0.5] * 9))
    assert (counted(session, SHORT), session.state.voids) == (3, 0)


def test_a_failing_peer_does_not_stop_the_others() -> None:
    session = Scripted({key: value for key, value in RATES.items() if key[0] != FIELD[1].key})
    screen(session, plan(), nothing)
    run_rounds(session, plan(), nothing, shares())
    assert counted(session, SHORT, FIELD[1]) == 0
    assert counted(session, SHORT, FIELD[2]) == 3


def test_no_round_starts_when_time_is_over() -> None:
    session = Scripted(RATES, seconds=0.0)
    run_rounds(session, plan(), nothing, shares())
    assert session.asked == []
    assert any("left out" in line for line in session.notes)


def test_a_cut_off_run_goes_on_where_it_was(tmp_path: Path) -> None:
    session, path = Scripted(RATES), tmp_path / "state.json"
    screen(session, plan(), nothing)
    run_rounds(session, plan(rounds=2, cells=[SHORT]), lambda: session.state.save(path), shares())
    again = Scripted(RATES)
    again.state = resume(path, {})
    assert again.state == session.state
    screen(again, plan(), nothing)
    run_rounds(again, plan(cells=[SHORT]), nothing, shares())
    assert len(again.asked) == 3
    assert counted(again, SHORT) == 3


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    State({"threads": 2}).save(path)
    with pytest.raises(SystemExit, match="other settings.*threads"):
        resume(path, {"threads": 4})
    path.write_text("[1]")
    with pytest.raises(SystemExit, match="remove it"):
        resume(path, {})


def test_disturbance_is_what_others_used_between() -> None:
    before = {(1, 0.0): ("shell", 10.0), (2, 0.0): ("gone", 5.0)}
    after = {(1, 0.0): ("shell", 10.25), (2, 9.0): ("new", 1.0), (3, 9.0): ("other", 0.5)}
    found = disturbance(before, after, 100.0, processors=2)
    assert (found.share, found.total) == (pytest.approx(0.01), pytest.approx(0.00875))
    assert (found.worst, found.void) == ("new", False)
    assert not disturbance({}, {}, 1.0, processors=2).void


def test_one_greedy_process_or_many_small_ones_void_a_round() -> None:
    assert disturbance({}, {(1, 0.0): ("one", 1.01)}, 100.0, processors=64).void
    many = {(pid, 0.0): ("many", 0.9) for pid in range(3)}
    assert disturbance({}, many, 100.0, processors=2).void
    assert not disturbance({}, many, 100.0, processors=4).void


def test_own_children_are_not_others() -> None:
    with worker_of(ANSWERS) as worker:
        worker.ask(30.0)
        heard = {pid for pid, _ in usage_of_others()}
        assert not heard & {os.getpid(), *(child.pid for child in psutil.Process().children())}
        assert os.getppid() in heard


ANSWERS = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request.get("end"): print("last words", file=sys.stderr); sys.exit(3)
    if request.get("wait"): import time; time.sleep(60)
    print(json.dumps({"error": "refused"} if request.get("refuse") else {"got": request}), flush=True)
"""


def worker_of(text: str) -> WorkerProcess:
    return WorkerProcess(1, (sys.executable, "-c", text))


def test_a_worker_sleeps_and_wakes() -> None:
    with worker_of(ANSWERS) as worker:
        for number in range(3):
            assert worker.ask(30.0, number=number) == {"got": {"number": number}}
            worker.sleep()
        with pytest.raises(WorkerError, match="refused"):
            worker.ask(30.0, refuse=True)
        assert worker.ask(30.0, number=9) == {"got": {"number": 9}}


@pytest.mark.parametrize(("request_", "words"), [("end", "status 3: last words"), ("wait", "no answer within 1 s")])
def test_a_worker_that_dies_or_hangs_is_an_error(request_: str, words: str) -> None:
    with worker_of(ANSWERS) as worker, pytest.raises(WorkerError, match=words):
        worker.ask(1.0 if request_ == "wait" else 30.0, **{request_: True})


PEER = """
import json, sys
timing = {"prefill_tokens": 8, "prefill_s": 2.0, "decode_tokens": 6, "decode_s": 2.0}
timing |= {"peak_rss": 5, "bytes_per_token": 7}
for line in sys.stdin:
    request = json.loads(line)
    broken = request.get("context") == 6144 or request.get("engine") == "openvino"
    print(json.dumps({"error": "no room"} if broken else timing | {"token": 1}), flush=True)
"""


def test_a_session_goes_on_after_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.comparison.session.WorkerProcess", lambda threads: worker_of(PEER))
    monkeypatch.setattr("benchmarks.comparison.session.SETTLE", 0.0)
    state, notes = State({}), list[str]()
    ends = time.perf_counter() + 100
    files = {"shipped": Path("model.gguf")}
    good, bad = Variant("llama.cpp", "shipped"), Variant("openvino", "shipped")
    with Session(state, files, threads=1, steps=3, deadline=ends, note=notes.append) as session:
        assert session.measure(good, SHORT, 1) == Sample(good.key, SHORT, 1, 3.0, 4.0, 5, 7)
        assert session.measure(good, LONG, 1) is None
        assert session.measure(bad, SHORT, 1) is None
        assert session.measure(good, SHORT, 2) is not None
        asked = len(notes)
        assert session.measure(good, LONG, 2) is session.measure(bad, LONG, 2) is None
    assert set(state.errors) == {f"{good.key} @6144", bad.key}
    assert len(notes) == asked == 2
    assert len(state.first[good.key]) == 2 and bad.key not in state.first


def test_a_missing_engine_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"llama\.cpp is not in this environment .*make peers.*--engines"):
        main(["--engines", "llama.cpp"])


@pytest.mark.parametrize(
    ("arguments", "rounds", "minutes", "contexts"),
    [
        ([], 7, 45, [128, 2048, 6144]),
        (["--quick"], 3, 8, [128, 2048, 6144]),
        (["--random-llama", "1.1B-Q4_0"], 3, 45, [128, 2048]),
        (["--as-shipped", "--model", "qwen2.5-coder-1.5b"], 7, 45, [128, 512, 2048, 4096, 8192]),
        (["--contexts", "512,128", "--rounds", "9"], 9, 45, [128, 512]),
    ],
)
def test_defaults(arguments: Sequence[str], rounds: int, minutes: int, contexts: list[int]) -> None:
    found = parse(list(arguments))
    assert (found.rounds, found.minutes, found.contexts) == (rounds, minutes, contexts)


@pytest.mark.parametrize("arguments", [["--engines", "vllm"], ["--contexts", "0"], ["--random-llama", "Q8_0"]])
def test_options_that_do_not_fit_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
