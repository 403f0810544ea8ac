"""`thrifty bench`, `fit`, `models`, `pull` and `doctor`: shapes of their JSON, and what they refuse."""

from __future__ import annotations

import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.quiet import make_quiet

from thrifty.cli.shared import fit_search
from thrifty.errors import StorageError
from thrifty.evaluation import text
from thrifty.evaluation.roofline import roofline
from thrifty.frontier.report.report import render
from thrifty.frontier.space import off_grid, space
from thrifty.models.embedded import MODELS
from thrifty.recipe import Recipe

FIT = ("--context", 2048, "--prefix", 1024, "--scored", 8, "--threads", 1, "--items", 1)


@pytest.fixture(autouse=True)
def quick_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "BUFFER_MEGABYTES", 16)
    monkeypatch.setattr(roofline, "REPEATS", 1)
    beginning = text.prose()[:16_000]  # a token a byte: all of it is encoded anew by each measurement
    monkeypatch.setattr(text, "prose", lambda half=None: beginning)


def test_bench_prints_a_table_and_then_the_json_line(thrifty: Callable[..., Any], checkpoint: Path) -> None:
    found = thrifty("bench", checkpoint, "--contexts", "256,128", "--threads", 1)
    assert found.code == 0
    assert "of the roofline" in found.out
    report = found.json()
    figures = ["bandwidth_gb_s", "weight_bytes_per_token", "file_bytes_per_token", "contexts"]
    figures += ["peak_rss_mb", "ledger_peak_mb", "others_share"]
    assert list(report) == ["model", "recipe", *figures]
    assert 0 < report["ledger_peak_mb"] < report["peak_rss_mb"]
    read, filed = report["weight_bytes_per_token"], report["file_bytes_per_token"]
    assert filed == pytest.approx(2 * read, rel=0.01), "fp32 in the file, bf16 in memory"
    assert f"of the {filed / 1e6:.1f} MB that the checkpoint holds" in found.out.replace("\n", " ")
    assert report["model"] == str(checkpoint) and report["recipe"] == "as shipped"
    assert list(report["contexts"]) == ["128", "256"]
    for row in report["contexts"].values():
        fractions = ["roofline_fraction", "file_roofline_fraction"]
        assert list(row) == ["prefill_tok_s", "decode_tok_s", "bytes_per_token", *fractions]
        assert all(value > 0 for value in row.values())
    assert report["contexts"]["256"]["bytes_per_token"] > report["contexts"]["128"]["bytes_per_token"]
    assert report["peak_rss_mb"] > 20


def test_bench_json_is_one_line_and_takes_a_recipe(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[weights]]\ntechnique = "rtn"\nbits = 4\n[[cache]]\ntechnique = "kivi"\nbits = 4\n')
    whole = thrifty("bench", checkpoint, "--contexts", "1024", "--json", "--threads", 1)
    small = thrifty("bench", checkpoint, "--contexts", "1024", "--json", "--threads", 1, "--recipe", recipe)
    assert whole.out.count("\n") == small.out.count("\n") == 1
    assert small.json()["recipe"] == "rtn(bits=4) + kivi(bits=4)"
    sizes = [found.json()["contexts"]["1024"]["bytes_per_token"] for found in (whole, small)]
    assert sizes[1] < 0.5 * sizes[0]


def test_bench_leaves_default_contexts_out_that_do_not_fit(thrifty: Callable[..., Any], checkpoint: Path) -> None:
    assert list(thrifty("bench", checkpoint, "--json", "--threads", 1).json()["contexts"]) == ["128", "2048"]


@pytest.mark.parametrize(
    ("contexts", "code", "message"),
    [("0", 2, "'0' is not a positive whole number"), ("x", 2, "'x' is not a positive"), ("4096", 1, "use 1 to 4094")],
)
def test_bench_refuses_contexts(
    contexts: str, code: int, message: str, thrifty: Callable[..., Any], checkpoint: Path
) -> None:
    found = thrifty("bench", checkpoint, "--contexts", contexts)
    assert (found.code, found.out) == (code, "")
    assert message in found.message


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test goes on from another's search."""
    monkeypatch.setattr("thrifty.frontier.state.cache_directory", lambda: tmp_path / "states")
    make_quiet(monkeypatch)


@pytest.fixture
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped model with two caches, rounded weights, and the baseline off the grid."""
    labels = {"as shipped", "kivi(bits=4)", "rtn(bits=4, embedding_bits=4)", "rtn(bits=4)"}
    monkeypatch.setattr(
        "thrifty.frontier.question.space", lambda prefix, **_: [one for one in space(prefix) if one.label in labels]
    )
    monkeypatch.setattr(
        "thrifty.frontier.question.off_grid", lambda: [one for one in off_grid() if one.label in labels]
    )


@pytest.mark.long
@pytest.mark.usefixtures("few_candidates")
def test_fit_measures_writes_and_answers(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.toml"
    words = ("fit", checkpoint, "--memory", "1GB", *FIT, "-o", out, "--json", "--prompt", "Hello", "--off-grid")
    found = thrifty(*words)
    assert found.code == 0, found.err
    report = found.json()
    assert report["candidates"][report["winner"]]["recipe"] == report["best"]["recipe"] == "as shipped"
    assert report["memory_bytes"] == 10**9 and report["context"] == 2048
    assert report["recipe_file"] == str(out) and isinstance(report["answer"], str)
    for row in report["candidates"]:
        assert (row["quality"] is None) == (not row["weights"] and not row["cache"])
        assert row["stage"] in ("divergence", "tasks") and row["predicted_decode_tok_s"] > 0
    grids = {row["grid"] for row in report["candidates"]}
    assert grids == {"as shipped", "on the grid", "off the grid"}
    assert Recipe.load(out) == Recipe()


@pytest.mark.long
@pytest.mark.usefixtures("few_candidates")
def test_fit_tells_all_that_a_report_needs(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    words = ("fit", checkpoint, "--memory", "1GB", *FIT, "-o", tmp_path / "r.toml", "--json", "--prompt", "Hello")
    report = thrifty(*words, "--latency", "5s", "--batch", 2, "--seed", 3).json()
    assert set(report["machine"]) == {"name", "cpu", "threads", "bandwidth_gb_s", "memory_bytes"}
    assert set(report["versions"]) == {"thrifty", "python", "numpy"}
    assert report["budget"] | {"minutes": 0} == {
        "memory_bytes": 10**9,
        "context": 2048,
        "batch": 2,
        "latency_ms": 5000.0,
        "min_recovery": None,
        "minutes": 0,
        "seed": 3,
    }
    assert report["command"].startswith("thrifty fit ") and "--latency 5000ms" in report["command"]
    assert "--batch 2" in report["command"] and "--seed 3" in report["command"]
    assert set(report["memory"]) == {"weights", "cache_peak", "cache_steady", "workspace"}
    assert [set(one) for one in report["answers"]] == [{"prompt", "baseline", "winner"}] * 3
    assert report["answers"][0]["prompt"] == "Hello" and report["why"] and report["date"]
    assert set(report["profile"]) == {"decode", "prefill"}
    assert "recall" in report["candidates"][0]["tasks"] and report["undefined_tasks"] == ["recall", "choice"]
    assert all(isinstance(row["on_frontier"], bool) for row in report["candidates"])
    page = render(report)
    assert all(row["recipe"].split("(")[0] in page for row in report["candidates"])


@pytest.mark.long
@pytest.mark.usefixtures("few_candidates")
def test_fit_writes_a_recipe_that_drives_run_and_bench(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "best.toml"
    whole = thrifty("fit", checkpoint, "--memory", "1GB", *FIT, "-o", out, "--json", "--prompt", "").json()
    tight = whole["best"]["need_peak_bytes"] - 1
    found = thrifty("fit", checkpoint, "--memory", tight, *FIT, "-o", out, "--prompt", "Hello")
    assert found.code == 0, found.err
    assert "[1/" in found.out and "too big" in found.out and "best: " in found.out
    assert "> Hello" in found.out and "going on with" in found.err and "recipes predicted" in found.err
    document = tomllib.loads(out.read_text())
    assert document.get("weights") or document.get("cache")
    label = Recipe.load(out).label()
    ran = thrifty("run", checkpoint, "Hi", "--recipe", out, "--memory", tight, "--max-tokens", 4, "--json").json()
    assert ran["recipe"] == label
    benched = thrifty("bench", checkpoint, "--recipe", out, "--contexts", "128", "--json").json()
    assert benched["recipe"] == label


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.long
def test_fit_says_what_is_short_where_nothing_is_good_enough(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thrifty.frontier.measurement.expected_step", lambda *_: 0.5)
    out = tmp_path / "o.toml"
    found = thrifty("fit", checkpoint, "--memory", "1GB", *FIT, "-o", out, "--latency", "400ms", "--json")
    assert found.code == 1 and not out.exists()
    said = "took 500ms, 100ms more. It would do with --latency 510ms. Nothing was written."
    assert said in found.json()["error"] and found.message == ""
    people = thrifty("fit", checkpoint, "--memory", "1GB", *FIT, "-o", out, "--latency", "400ms")
    assert people.code == 1 and said in people.message
    assert found.json()["winner"] is None and found.json()["why"] == []


@pytest.mark.long
@pytest.mark.usefixtures("few_candidates")
def test_fit_keeps_the_best_so_far_where_its_state_cannot_be_written(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.storage.journal import Journal

    append, runs = Journal.add, []

    def full(self: Journal, value: Any) -> None:
        runs.extend([value] if value.get("kind") == "run" else [])
        if len(runs) > 2:
            raise StorageError("the disk is full (0 MB free).")
        append(self, value)

    out, state = tmp_path / "o.toml", tmp_path / "state.jsonl"
    words = ("fit", checkpoint, "--memory", "1GB", *FIT, "-o", out, "--state", state, "--prompt", "")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        found = thrifty(*words)
    assert found.code == 1 and out.exists()
    assert "the disk is full (0 MB free). What was measured before is kept" in found.message
    assert thrifty(*words).code == 0
    other = thrifty("fit", checkpoint, "--memory", "1GB", *FIT[:-1], 2, "-o", out, "--state", state)
    assert other.code == 1 and "items = 1; this run has 2" in other.message


@pytest.mark.long
@pytest.mark.usefixtures("few_candidates")
def test_fit_writes_a_report(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = types.ModuleType("thrifty.frontier.report.report")
    page.render = lambda document: f"<p>{document['best']['recipe']}</p>"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, page.__name__, page)
    path = tmp_path / "report.html"
    words = ("fit", checkpoint, "--memory", "1GB", *FIT, "-o", tmp_path / "o.toml", "--report", path, "--prompt", "")
    assert thrifty(*words).code == 0
    assert path.read_text() == "<p>as shipped</p>"


@pytest.mark.long
@pytest.mark.usefixtures("few_candidates")
def test_fit_takes_a_recipe_of_the_user_along(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('name = "mine"\n[[cache]]\ntechnique = "kivi"\nbits = 8\n')
    found = thrifty(
        "fit", checkpoint, "--memory", "1GB", *FIT, "-o", tmp_path / "o.toml", "-r", mine, "--prompt", "", "--json"
    )
    assert "mine" in [row["recipe"] for row in found.json()["candidates"]]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--memory", "1kB", "--context", 2048], 1, "nothing fits 1 kB at context 2048"),
        (["--memory", "1GB", "--context", 5000], 1, "context 5000 is out of range: this model takes 2 to 4096"),
        (["--memory", "1GB", "--context", 0], 2, "greater than or equal to 2"),
        (["--memory", "-1GB", "--context", 64], 2, "is not a size"),
        (["--memory", "0", "--context", 64], 2, "not positive; give at least 1 byte"),
        (["--memory", "1GB", "--context", 64, "-o", "/no/such/folder/r.toml"], 2, "there is no folder"),
        (["--memory", "1GB", "--context", 64, "-o", "/tmp"], 2, "is a folder"),
        (["--memory", "1GB", "--context", 64, "--report", "/no/such/folder/r.html"], 2, "there is no folder"),
        (["--memory", "1GB", "--context", 64, "--latency", "8"], 2, "is not a time. Write e.g. 8ms"),
        (["--memory", "1GB", "--context", 64, "--tasks", "recal"], 1, "Did you mean 'recall'"),
        (["--memory", "1GB", "--context", 64, "--minutes", "0"], 1, "no time to search"),
        (["--context", 64], 2, "a budget is missing: give it, such as --memory 150MB"),
        (["--memory", "1GB"], 2, "Missing option '--context'"),
        (["--memory", "1GB", "--context", 64, "--prefix", 4096], 1, "this context holds 4096"),
    ],
)
def test_fit_refuses(
    words: list[object], code: int, message: str, thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    output = [] if "-o" in words else ["-o", tmp_path / "r.toml"]
    found = thrifty("fit", checkpoint, *words, *output)
    assert found.code == code
    assert message in found.message
    assert not (tmp_path / "r.toml").exists()


@pytest.mark.usefixtures("few_candidates")
def test_an_interrupted_fit_keeps_the_best_so_far(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.frontier.fit import Fit

    rows = Fit.rows

    def interrupted(self: Fit) -> Any:
        yield next(rows(self))
        raise KeyboardInterrupt

    monkeypatch.setattr(Fit, "rows", interrupted)
    out = tmp_path / "best.toml"
    found = thrifty("fit", checkpoint, "--memory", "1GB", *FIT, "-o", out, "--json")
    assert found.code == 130
    assert out.exists()
    assert found.json()["interrupted"] is True and found.json()["winner"] == 0
    assert "was stopped before its end; the same command goes on" in " ".join(found.json()["why"])
    assert "the best so far is kept" in found.err and "error" not in found.json()
    stages = [row["stage"] for row in found.json()["candidates"]]
    assert stages[0] == "divergence" and set(stages[1:]) == {"predicted"}


@pytest.mark.usefixtures("few_candidates")
def test_a_fit_that_is_interrupted_at_once_keeps_nothing(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.frontier.workshop import Workshop

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Workshop, "measure", interrupted)
    out = tmp_path / "best.toml"
    found = thrifty("fit", checkpoint, "--memory", "1GB", *FIT, "-o", out)
    assert found.code == 130 and not out.exists()
    assert "stopped before any that fits was measured" in found.err
    assert "the search was stopped before a recipe that fits was measured; the same command goes on" in found.message
    assert "the best so far is kept" not in found.err and "--minutes" not in found.message


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.long
def test_fit_tells_which_recipe_cannot_be_made(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('name = "mine"\n[[weights]]\ntechnique = "rtn"\nskip = ["layer.*"]\n')
    words = ("fit", checkpoint, "--memory", "1GB", *FIT, "-o", tmp_path / "o.toml", "-r", mine, "--prompt", "")
    found = thrifty(*words, "--tasks", "")
    assert found.code == 0, found.err
    reason = "technique 'rtn': skip 'layer.*' matches no linear layer. Did you mean"
    assert f"Warning: mine was left out: {reason}" in found.message
    assert [
        (one["recipe"], one["reason"][: len(reason)])
        for one in thrifty(*words, "--tasks", "", "--json").json()["skipped"]
    ] == [("mine", reason)]


def test_models_with_a_recipe_weighs_it_without_making_it(
    thrifty: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: object, **__: object) -> None:
        raise AssertionError("weights were made")

    monkeypatch.setattr("thrifty.weights.technique.prepare", made)
    monkeypatch.setattr("thrifty.models.embedded.MODELS", {"recall-2m": MODELS["recall-2m"]})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[weights]]\ntechnique = "rtn"\nembedding_bits = 4\n')
    (rounded,) = thrifty("models", "--recipe", recipe, "--json").json()
    recipe.write_text("")
    (shipped,) = thrifty("models", "--recipe", recipe, "--json").json()
    assert 0 < rounded["need"]["peak_bytes"] < shipped["need"]["peak_bytes"]


def test_models_lists_the_embedded_ones(thrifty: Callable[..., Any]) -> None:
    found = thrifty("models", "--json").json()
    assert {model["name"] for model in found} == set(MODELS)
    assert {"title", "licence", "bytes", "path"} <= set(found[0])
    assert "smollm2-135m" in thrifty("models").out


def test_pull_of_an_unknown_name_gets_the_nearest(thrifty: Callable[..., Any]) -> None:
    found = thrifty("pull", "smolm2")
    assert found.code == 1
    assert "Did you mean 'smollm2-135m'?" in found.message


def test_pull_checks_the_recipe_before_it_fetches(
    thrifty: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("thrifty.models.pull.pull", fetch)
    found = thrifty("pull", "smollm2-135m", "--recipe", tmp_path / "none.toml")
    assert found.code == 1 and "cannot read recipe" in found.message


def test_pull_says_where_the_model_is(
    thrifty: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(name: str, progress: Callable[[int, int], None], note: Callable[[str], None]) -> Path:
        for done in range(0, 101, 5):
            progress(done, 100)
        note("the hub is passed over")
        return tmp_path / "model.gguf"

    monkeypatch.setattr("thrifty.models.pull.pull", fetch)
    monkeypatch.setattr("thrifty.models.embedded.find", lambda _: None)
    found = thrifty("pull", "smollm2-135m", "--json")
    assert found.json()["path"] == str(tmp_path / "model.gguf") and not found.json()["already_here"]
    assert "50% of" in found.err and "100% of" in found.err and "the hub is passed over" in found.err


def test_doctor_says_what_runs_and_what_is_missing(thrifty: Callable[..., Any]) -> None:
    found = thrifty("doctor", "--json", "--threads", 1).json()
    assert found["kernels"] in ("native", "reference") and found["reason"]
    assert found["bandwidth_gb_s"] > 0 and found["gemm_gflop_s"] > 0
    assert isinstance(found["cpu_features"], dict)
    assert all(set(item) == {"what", "get"} for item in found["missing"])
    assert "memory reads" in thrifty("doctor", "--threads", 1).out


def test_doctor_names_the_extra_of_every_command_that_needs_one(
    thrifty: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thrifty.extras.is_there", lambda module: False)
    missing = thrifty("doctor", "--json", "--threads", 1).json()["missing"]
    wanted = [item["get"] for item in missing if item["get"].startswith("pip install")]
    assert wanted == [f"pip install 'thrifty-engine[{name}]'" for name in ("torch", "eval", "serve", "cluster", "otel")]
    assert "thrifty serve --cluster" in str(missing)


def test_a_search_without_a_copy_keeps_none(checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    asked = {"memory": 10**9, "context": 256, "threads": None}
    fit = fit_search.prepare(str(checkpoint), asked, [], tmp_path / "state.jsonl", True, copy=False)
    with fit.state:
        assert fit.candidates and not list(cache.glob("converted/[!.]*"))
    names = ("batch", "min_recovery", "minutes", "items", "seed", "prefix", "scored", "latency", "tasks", "native")
    again = fit_search.reproduced("m", asked | dict.fromkeys((*names, "off_grid")), tmp_path / "o.toml", copy=False)
    assert "--no-copy" in again.split()
