"""The figures against slow and obvious versions of them, and vLLM's names."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from thrifty.loadtest.arrivals import arrival_times
from thrifty.loadtest.errors import LoadError
from thrifty.loadtest.figures import details, figures, most_at_a_time, percentile
from thrifty.loadtest.goodput import good, parse_objectives
from thrifty.loadtest.lengths import Lengths, Shape, read_shapes, repeated
from thrifty.loadtest.load import Measured
from thrifty.loadtest.outcome import Outcome
from thrifty.loadtest.plot import round_steps
from thrifty.loadtest.prompts import Scale
from thrifty.loadtest.sweep import kept_up, parse_rates, rates_around, saturation

VLLM_KEYS = """
duration completed failed total_input_tokens total_output_tokens request_throughput request_goodput output_throughput
total_token_throughput max_output_tokens_per_s max_concurrent_requests mean_ttft_ms median_ttft_ms std_ttft_ms
p99_ttft_ms mean_tpot_ms median_tpot_ms std_tpot_ms p99_tpot_ms mean_itl_ms median_itl_ms std_itl_ms p99_itl_ms
mean_e2el_ms median_e2el_ms std_e2el_ms p99_e2el_ms
""".split()  # noqa: SIM905  # as in the source of vllm/benchmarks/serve.py


def drawn(count: int, seed: int = 0) -> list[Outcome]:
    """Answers of random times; every seventh failed, every fifth has one token."""
    chance = random.Random(seed)
    outcomes = []
    for place in range(count):
        tokens = 1 if place % 5 == 0 else chance.randint(2, 9)
        gaps = [chance.uniform(0.01, 0.1) for _ in range(tokens - 1)]
        first = chance.uniform(0.05, 3)
        failed = {"status": 429, "error": "HTTP 429: full"} if place % 7 == 3 else {"status": 200}
        whole = first + sum(gaps) + 0.002
        outcomes.append(Outcome(place * 0.1, 100 + place, tokens, 7, first, gaps, whole, "x", **failed))  # type: ignore[arg-type]
    return outcomes


def test_figures_are_those_of_the_requests_that_succeeded_under_vllms_names() -> None:
    outcomes = drawn(40)
    document = figures(Measured(outcomes, 10.0), {"ttft": 2000, "tpot": 60})
    assert set(VLLM_KEYS) <= set(document)
    whole = [one for one in outcomes if not one.error]
    assert document["completed"] == len(whole) and document["failed"] == document["rejected"] == 40 - len(whole)
    assert document["request_throughput"] == len(whole) / 10
    assert document["output_throughput"] == sum(one.output_tokens for one in whole) / 10
    assert document["total_cached_tokens"] == 7 * len(whole)
    times = {
        "ttft": [one.ttft for one in whole],
        "tpot": [(one.latency - one.ttft) / (one.output_tokens - 1) for one in whole if one.output_tokens > 1],
        "itl": [gap for one in whole for gap in one.itl],
        "e2el": [one.latency for one in whole],
    }
    for name, values in times.items():
        assert document[f"mean_{name}_ms"] == pytest.approx(1e3 * np.mean(values))
        assert document[f"std_{name}_ms"] == pytest.approx(1e3 * np.std(values))
        for share in (50, 90, 95, 99):
            assert document[f"p{share}_{name}_ms"] == pytest.approx(1e3 * np.percentile(values, share))


def test_goodput_counts_what_keeps_every_objective() -> None:
    outcomes = drawn(40, seed=1)
    expected = 0
    for one in outcomes:
        tpot = (one.latency - one.ttft) / (one.output_tokens - 1) if one.output_tokens > 1 else 0
        expected += not one.error and one.ttft <= 2 and tpot <= 0.06 and one.latency <= 2.2
    objectives = parse_objectives(["ttft:2000,tpot:60", "e2el:2200"])
    assert 0 < good(outcomes, objectives) == expected < 40
    assert figures(Measured(outcomes, 4.0), objectives)["request_goodput"] == expected / 4
    assert figures(Measured(outcomes, 4.0), {})["request_goodput"] is None


@pytest.mark.parametrize("text", ["tftt:20", "ttft", "ttft:soon", "tpot:-1", "tpot:nan"])
def test_an_objective_that_is_none_is_named(text: str) -> None:
    with pytest.raises(LoadError, match=text.partition(":")[0]):
        parse_objectives([text])


def test_nothing_measured_has_figures_too() -> None:
    document = figures(Measured([], 0.0, cancelled=True), {"ttft": 1})
    assert document["completed"] == 0 and document["request_goodput"] == 0 and document["p99_ttft_ms"] == 0
    assert document["cancelled"] is True
    assert percentile([], 99) == 0


def test_the_most_at_a_time_is_counted_in_seconds() -> None:
    outcomes = [Outcome(start, 1, 1, 0, 0.1, [], length) for start, length in ((10.0, 2.5), (11.1, 0.5), (12.2, 1.0))]
    busy = [sum(int(o.start - 10) <= at <= int(o.start + o.latency - 10) for o in outcomes) for at in range(5)]
    assert most_at_a_time(outcomes) == max(busy) == 2


def test_details_have_a_line_for_each_request_that_was_not_cancelled() -> None:
    outcomes = [*drawn(4), Outcome(9.0, 5, cancelled=True)]
    lists = details(Measured(outcomes, 1.0))
    assert {len(values) for values in lists.values()} == {4}
    assert lists["output_lens"][3] == 0 and "429" in lists["errors"][3]


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 4.0])
def test_arrivals_have_the_rate_and_the_spread_that_were_asked_for(burstiness: float) -> None:
    times = arrival_times(20_000, 5.0, burstiness, random.Random(0))
    gaps = np.diff([0.0, *times])
    assert times == sorted(times) and times[-1] == pytest.approx(4000)
    # A gamma distribution of shape k has a coefficient of variation of 1/√k.
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(burstiness**-0.5, rel=0.05)


def test_arrivals_at_equal_distances_and_all_at_once() -> None:
    assert arrival_times(4, 2.0, math.inf, random.Random(0)) == [0.5, 1.0, 1.5, 2.0]
    assert arrival_times(3, math.inf, 1.0, random.Random(0)) == [0.0, 0.0, 0.0]
    with pytest.raises(LoadError, match="rate is 0"):
        arrival_times(3, 0.0, 1.0, random.Random(0))


def test_lengths_are_fixed_uniform_or_from_a_file(tmp_path: Any) -> None:
    chance = random.Random(0)
    assert {Lengths.parse("7").draw(chance) for _ in range(20)} == {7}
    assert {Lengths.parse("3-5").draw(chance) for _ in range(99)} == {3, 4, 5}
    for wrong in ("5-3", "0", "many", "-4"):
        with pytest.raises(LoadError, match=wrong):
            Lengths.parse(wrong)
    path = tmp_path / "lengths"
    path.write_text('812 96\n{"input": 5, "output": 6}\n\n{"prompt_len": 7, "output_len": 8}\n9,10\n')
    shapes = read_shapes(path)
    assert shapes == [Shape(812, 96), Shape(5, 6), Shape(7, 8), Shape(9, 10)]
    assert sorted(map(repr, repeated(shapes, 8, chance))) == sorted(map(repr, shapes * 2))
    path.write_text("812 96\n1 2 3\n")
    with pytest.raises(LoadError, match="line 2"):
        read_shapes(path)


def test_two_prompts_tell_what_words_weigh() -> None:
    scale = Scale.of((64, 30 + 80), (256, 30 + 320))
    assert (scale.overhead, scale.per_word) == (pytest.approx(30), pytest.approx(1.25))
    assert scale.words(1000) == 800 and scale.words(-5) == 1


def run(rate: float, good_share: float | None, answered: float = 1.0, seconds: float = 10.0) -> dict[str, Any]:
    """The figures of 100 requests."""
    goodput = None if good_share is None else 100 * good_share / seconds
    counts = {"completed": round(100 * answered), "failed": round(100 * (1 - answered)), "duration": seconds}
    throughput = 100 * answered / seconds
    return counts | {
        "request_rate": rate, "request_goodput": goodput, "request_throughput": throughput, "mean_e2el_ms": 500.0
    }  # fmt: skip


def test_a_server_keeps_up_to_the_last_rate_before_the_first_it_does_not() -> None:
    assert kept_up(run(10, 0.95)) and not kept_up(run(10, 0.85))
    assert kept_up(run(10, None)) and not kept_up(run(10, None, answered=0.8))
    assert not kept_up(run(20, None))  # 100 requests at 20/s come in 5 s; it took 10
    runs = [run(1, 1.0), run(3, 0.1), run(2, 0.92), run(4, 1.0)]
    assert saturation(runs) == 2
    assert saturation([run(1, 0.2)]) is None


def test_rates_of_a_sweep() -> None:
    assert parse_rates("auto") is None and parse_rates("2,0.5, 1") == (0.5, 1.0, 2.0)
    with pytest.raises(LoadError, match="soon"):
        parse_rates("1,soon")
    assert rates_around(2.0) == (0.5, 1.0, 1.5, 1.8, 2.0, 2.2, 2.5)
    with pytest.raises(LoadError, match="no request was answered"):
        rates_around(0.0)


@pytest.mark.parametrize("highest", [0.0031, 0.4, 1.0, 1.05, 4.0, 9.99, 262.0, 3e6])
def test_axes_have_round_numbers(highest: float) -> None:
    steps = round_steps(highest)
    assert 5 <= len(steps) <= 11 and steps[0] == 0 and steps[-1] <= highest * 1.000001 < steps[-1] + steps[1] * 1.00001
    assert f"{steps[1]:e}"[0] in "125" and steps[1] == pytest.approx(float(f"{steps[1]:.0e}"))
