"""What the benchmarks of servers make of what they measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.serving_comparison.program import parse
from benchmarks.serving_comparison.rates import moments_of, together
from benchmarks.serving_comparison.servers import kinds
from benchmarks.soak import Memory, verdicts

from thrifty.loadtest.outcome import Outcome


def test_the_rate_is_that_of_the_time_in_which_all_run() -> None:
    early = [0.0, 1.0, 2.0, 3.0, 4.0]
    late = [2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0]
    # From 2 to 4: two tokens of the first stream, four of the second.
    assert together([early, late]) == pytest.approx(6 / 2)
    with pytest.raises(ValueError, match="never ran all together"):
        together([[0.0, 1.0], [2.0, 3.0]])


def test_moments_are_the_sums_of_gaps() -> None:
    assert moments_of(Outcome(10.0, 1, ttft=0.5, itl=[0.25, 0.5])) == pytest.approx([10.5, 10.75, 11.25])


def test_every_server_gets_the_file_the_threads_and_goes_on_past_the_end(tmp_path: Any) -> None:
    known = kinds(tmp_path / "m.gguf", 2, "/peers/python", [2, 7], 8, 2048, "--batch 4")
    assert set(known) == {"thrifty", "llama.cpp", "openvino"}
    for kind in known.values():
        assert str(tmp_path / "m.gguf") in kind.words and "{port}" in kind.words and "2" in kind.words
    assert known["llama.cpp"].extra == {"logit_bias": {"2": -100, "7": -100}}
    assert known["thrifty"].words[-2:] == ("--batch", "4") and known["thrifty"].extra == {"ignore_eos": True}


def test_an_unknown_server_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--servers", "thrifty,vllm"])
    assert "unknown vllm" in capsys.readouterr().err


def memory(process: list[float], ledger: float = 50e6) -> Memory:
    """What was seen of a server."""
    seen = Memory.__new__(Memory)
    seen.samples = [(float(at), int(held), ledger) for at, held in enumerate(process)]
    return seen


def judged(outcomes: list[Outcome], wrong: int = 0, seen: Memory | None = None, left: float = 0.0) -> set[str]:
    """What does not hold."""
    options: Any = SimpleNamespace(memory="100MB", ttft=2000.0, tpot=60.0)
    found = verdicts(options, outcomes, wrong, seen or memory([200e6] * 9), left)
    return {name for name, (holds, _) in found.items() if not holds}


GOOD = [Outcome(0.0, 1, 3, ttft=1.0, itl=[0.05, 0.05], latency=1.1, status=200) for _ in range(50)]
REFUSED = Outcome(0.0, 1, status=429, error="HTTP 429: full")


def test_a_soak_holds_where_everything_does() -> None:
    assert judged([*GOOD, REFUSED]) == set()


def test_each_thing_that_does_not_hold_is_told() -> None:
    assert judged(GOOD) == {"overload is refused"}
    assert judged([*GOOD, REFUSED, Outcome(0.0, 1, error="HTTP 500: oh", status=500)]) == {"no request lost"}
    assert judged([*GOOD, REFUSED], wrong=1) == {"no answer wrong"}
    slow = [Outcome(0.0, 1, 3, ttft=2.5, latency=2.9, status=200) for _ in range(3)]
    assert judged([*GOOD, *slow, REFUSED]) == {"first token in time", "later tokens in time"}
    assert judged([*GOOD, REFUSED], seen=memory([200e6] * 6 + [240e6] * 3)) == {"memory is flat"}
    assert judged([*GOOD, REFUSED], seen=memory([200e6] * 9, ledger=101e6)) == {"memory within the budget"}
    assert judged([*GOOD, REFUSED], left=4096.0) == {"all is given back"}
    assert judged([REFUSED]) == {"no answer wrong", "first token in time", "later tokens in time"}


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_a_short_soak_is_judged_too(samples: int) -> None:
    assert judged([*GOOD, REFUSED], seen=memory([200e6] * samples)) == set()
