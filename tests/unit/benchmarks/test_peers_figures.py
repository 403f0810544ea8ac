"""From samples to winners, ratios and the line of JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from benchmarks.comparison.figures import DECODE, PREFILL, Figure, Sample, document, figures, ratio, roofline, winners
from benchmarks.comparison.variants import EXACT, INT2KV, MAIN, Cell, Variant, cells, one_file, variants

SHORT, LONG = Cell(128), Cell(6144)
FIELD = [
    Variant("thrifty", MAIN),
    Variant("thrifty", EXACT, exact=True, only=(SHORT,)),
    Variant("llama.cpp", "Q4_0"),
    Variant("llama.cpp", "shipped", exact=True),
    Variant("llama.cpp", "shipped flash", exact=True),
    Variant("openvino", "Q4_0"),
    Variant("transformers", "bf16", only=(SHORT,)),
]


def sample(variant: str, number: int, decode: float, prefill: float | None = 1.0, **more: Any) -> Sample:
    return Sample(variant, more.pop("cell", SHORT), number, decode, prefill, more.pop("peak_rss", 10), **more)


SCREENING = [
    sample("llama.cpp: Q4_0", 0, 130, 500),
    sample("llama.cpp: shipped", 0, 90, 200),
    sample("llama.cpp: shipped flash", 0, 95, 180),
    sample("openvino: Q4_0", 0, 80, 900),
    sample("transformers: bf16", 0, 20, 300),
    sample("llama.cpp: Q4_0", 0, 30, 100, cell=Cell(2048)),
    sample("llama.cpp: shipped flash", 0, 40, 90, cell=Cell(2048)),
]


def keys(found: list[Variant]) -> set[str]:
    return {variant.key for variant in found}


def test_each_engines_fastest_goes_on() -> None:
    found = winners(Figure("decode@128", SHORT, DECODE, MAIN), FIELD, SCREENING)
    assert keys(found) == {f"thrifty: {MAIN}", "llama.cpp: Q4_0", "openvino: Q4_0", "transformers: bf16"}


def test_a_figure_of_exact_weights_admits_exact_peers_only() -> None:
    decode = winners(Figure("decode@128:exact", SHORT, DECODE, EXACT, exact=True), FIELD, SCREENING)
    assert keys(decode) == {f"thrifty: {EXACT}", "llama.cpp: shipped flash"}
    prefill = winners(Figure("prefill@128:exact", SHORT, PREFILL, EXACT, exact=True), FIELD, SCREENING)
    assert keys(prefill) == {f"thrifty: {EXACT}", "llama.cpp: shipped"}


def test_what_was_not_screened_is_decided_by_the_engines_nearest_context() -> None:
    found = winners(Figure("decode@6144", LONG, DECODE, MAIN), FIELD, SCREENING)
    assert keys(found) == {f"thrifty: {MAIN}", "llama.cpp: shipped flash", "openvino: Q4_0"}


def test_of_an_engine_that_was_not_screened_the_first_goes_on() -> None:
    found = winners(Figure("decode@128", SHORT, DECODE, MAIN), FIELD, [])
    assert keys(found) == {f"thrifty: {MAIN}", "llama.cpp: Q4_0", "openvino: Q4_0", "transformers: bf16"}


def test_measured_rounds_do_not_choose_winners() -> None:
    later = [*SCREENING, sample("llama.cpp: shipped", 1, 1000)]
    assert "llama.cpp: shipped" not in keys(winners(Figure("decode@128", SHORT, DECODE, MAIN), FIELD, later))


def test_a_ratio_is_of_medians_over_the_best_peer_without_screening() -> None:
    samples = [sample(f"thrifty: {MAIN}", number, rate) for number, rate in ((0, 9999), (1, 200), (2, 300), (3, 310))]
    samples += [sample("llama.cpp: Q4_0", number, rate) for number, rate in ((0, 1), (1, 100), (2, 120), (3, 999))]
    samples += [sample("openvino: Q4_0", number, rate) for number, rate in ((1, 110), (2, 130), (3, 90))]
    assert ratio(Figure("decode@128", SHORT, DECODE, MAIN), FIELD, samples) == (300 / 120, "llama.cpp: Q4_0")


def test_no_ratio_where_a_side_is_missing() -> None:
    figure = Figure("decode@128", SHORT, DECODE, MAIN)
    assert ratio(figure, FIELD, [sample(f"thrifty: {MAIN}", 1, 200)]) is None
    assert ratio(figure, FIELD, [sample("llama.cpp: Q4_0", 1, 200)]) is None
    assert ratio(figure, FIELD, []) is None


def test_a_reused_prefill_has_no_rate() -> None:
    samples = [sample(f"thrifty: {MAIN}", 1, 1, 600), sample("llama.cpp: Q4_0", 1, 1, 300)]
    samples += [sample("llama.cpp: Q4_0", 2, 1, None)]
    assert ratio(Figure("prefill@128", SHORT, PREFILL, MAIN), FIELD, samples) == (2.0, "llama.cpp: Q4_0")


def test_the_roofline_counts_what_a_step_reads() -> None:
    samples = [sample(f"thrifty: {MAIN}", number, 200, bytes_per_token=100_000_000) for number in (1, 2)]
    assert roofline(SHORT, f"thrifty: {MAIN}", samples, 25.0) == pytest.approx(0.8)
    assert roofline(LONG, f"thrifty: {MAIN}", samples, 25.0) is None


def test_the_figures_of_a_whole_run() -> None:
    named = {figure.name: figure for figure in figures(cells([128, 2048, 6144]), MAIN)}
    assert {
        "decode@128", "decode@128:exact", "decode@2048", "decode@6144", "decode@6144:int2kv", "prefill@2048",
        "prefill@6144", "decode@128x8",
    } <= set(named)  # fmt: skip
    assert named["decode@128:exact"].exact and not named["decode@6144:int2kv"].exact
    assert named["decode@6144:int2kv"].variant == INT2KV
    assert all(figure.variant == EXACT for figure in figures(cells([128], batch=False), EXACT))


def test_the_document_has_its_shape() -> None:
    field = variants(["thrifty", "llama.cpp"], 6144)
    samples = [
        sample(f"thrifty: {MAIN}", n, 200 + n, 900, peak_rss=3_000_000 - n, bytes_per_token=10**8) for n in (0, 1)
    ]
    samples += [sample("llama.cpp: Q4_0", 1, 100.5, 300)]
    found = document(
        field, cells([128, 2048, 6144]), MAIN, samples,
        threads=2, bandwidth=30.123, first={f"thrifty: {MAIN}": [1.0, 3.0]}, kl={"llama.cpp: Q4_0": 0.33},
    )  # fmt: skip
    assert json.loads(json.dumps(found)) == found
    assert (found["threads"], found["bandwidth_gb_s"]) == (2, 30.12)
    own, peer = found["results"]
    assert own == {
        "engine": "thrifty", "variant": MAIN, "context": 128, "batch": 1, "prefill_tok_s": 900, "decode_tok_s": 201,
        "peak_rss_mb": 3.0, "first_token_s": 2.0, "kl": None, "rounds": 1,
    }  # fmt: skip
    assert (peer["first_token_s"], peer["kl"]) == (None, 0.33)
    assert found["ratios"]["decode@128"] == 2.0
    assert found["ratios"]["decode@6144"] is None
    assert set(found["roofline"]) == {"decode@128", "decode@2048", "decode@6144"}


def test_the_field_has_every_variant_once_and_the_promising_first() -> None:
    field = variants(["thrifty", "llama.cpp", "openvino", "transformers"], 6144)
    assert len(keys(field)) == len(field)
    ways = {(v.file, v.options["flash"], v.options["kv"]) for v in field if v.engine == "llama.cpp"}
    assert {(kind, flash, "f16") for kind in ("Q4_0", "shipped", "Q8_0") for flash in (False, True)} <= ways
    assert not any(kv == "q8_0" and not flash for _, flash, kv in ways)
    assert [v.engine for v in field[:6]] == ["thrifty"] * 3 + ["llama.cpp", "openvino", "transformers"]
    assert all(v.context == 128 for t in field if t.engine == "transformers" for v in t.only or ())
    assert {v.file for v in one_file(["thrifty", "llama.cpp"])} == {"shipped"}
