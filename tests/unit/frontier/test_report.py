"""The report: its figures, and that nothing in a document can do harm or reach outside."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.frontier.report import plot as report_plot
from thrifty.frontier.report import report
from thrifty.frontier.report import view as report_view
from thrifty.frontier.report.document import ReportError, read
from thrifty.frontier.report.drawing import drawing

SAMPLE = Path(__file__).with_name("report_document.json")
HARM = "</script><script>window.harm = 1</script><img src=x onerror='window.harm = 1'>\"'&{{ 7 * 7 }}"


@pytest.fixture
def document() -> dict[str, Any]:
    return json.loads(SAMPLE.read_text(encoding="utf-8"))


class Page(HTMLParser):
    """A page taken apart: tags with their attributes, the text of scripts, all other text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def harmful(value: Any, word: str = HARM) -> Any:
    """The document with `word` before every text, but the few that are a choice."""
    if isinstance(value, dict):
        return {key: item if key in ("grid", "stage") else harmful(item, word) for key, item in value.items()}
    if isinstance(value, list):
        return [harmful(item, word) for item in value]
    return word + value if isinstance(value, str) else value


def with_harmful_names(document: dict[str, Any]) -> dict[str, Any]:
    found = harmful(document)
    found["versions"][HARM] = HARM
    found["profile"]["decode"][HARM] = {"us_per_token": 1.0, "bytes": 1}
    found["candidates"][found["winner"]]["tasks"][HARM] = {"score": 0.5, "recovery": None, "items": 1}
    found["skipped"] = [{"recipe": HARM, "reason": HARM}]
    return found


def test_the_page_says_what_was_found(document: dict[str, Any]) -> None:
    text = Page(report.render(document)).text
    for words in (
        "smollm2-135m in 150 MB",
        "recovers 99.2% of the uncompressed model's score, saves 19.93 MB of its 150.3 MB and decodes at 0.76 times",
        "97.9–100.4%",
        "312.3 kB more than the budget",
        "undefined the uncompressed model scores nothing",
        "Predicted only: 8 recipes",
        "≈ 189 predicted",
        "Off the grid: what a technique costs",
        "A token of an answer, 3,194 µs",
        "cache, at the peak 9.228 MB",
        "Python, its libraries and the tokenizer take 230.3 MB beside it",
        document["command"],
    ):
        assert words in text, words


def test_a_page_asks_for_nothing_and_only_its_own_scripts_may_run(document: dict[str, Any]) -> None:
    page = Page(report.render(with_harmful_names(document)))
    links = [
        value for _, found in page.tags for name, value in found.items() if name in ("src", "href", "action", "data")
    ]
    assert links == ["#recipes"]
    policy = next(found["content"] for _, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and "unsafe-inline'; script-src 'sha256-" in policy
    data, *code = page.scripts
    assert len(code) == 2
    for script in code:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
        assert "sourceMappingURL" not in script
    assert json.loads(data)["points"][0]["label"].startswith(HARM)


def test_what_a_document_says_stays_text(document: dict[str, Any]) -> None:
    clean, page = Page(report.render(document)), Page(report.render(with_harmful_names(document)))
    assert [tag for tag, _ in page.tags if tag in ("script", "img")] == [
        tag for tag, _ in clean.tags if tag == "script"
    ]
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    assert HARM in " ".join(page.words)


def test_a_recipe_that_was_only_predicted_has_no_measured_figure(document: dict[str, Any]) -> None:
    fit = read(document)
    index = next(index for index, row in enumerate(fit.candidates) if not row.measured)
    row = report_view.row(fit, index, "predicted")
    cells = dict(zip([column.title for column in report_view.COLUMNS], row.cells, strict=True))
    assert cells["decode"].text.startswith("≈") and cells["decode"].note == "predicted"
    assert cells["KL"].text == cells["prefill"].text == cells["same choice"].text == report_view.NONE
    assert cells["recovery"].text == "predicted" and "predicted" in row.badges


def test_recovery_that_has_no_value_is_said_to_be_undefined(document: dict[str, Any]) -> None:
    for row in document["candidates"]:
        row["recovery"] = None
    text = Page(report.render(document)).text
    assert "has no defined recovery, for the uncompressed model scores nothing on these tasks" in text
    assert "recovery undefined" in text
    plot = report_plot.plot(read(document))
    assert plot is not None and plot.default == "kl" and list(plot.views) == ["kl"]


def test_short_measurements_say_so_and_speed_is_drawn_for_one_context(document: dict[str, Any]) -> None:
    for row in document["candidates"]:
        row["measured_after_tokens"] = 1024 if row["stage"] == "divergence" else 1790
        row["predicted_decode_tok_s"] = 100.0
    found = read(document)
    notes = [report_view.row(found, index, "other").cells[5].note for index in range(len(found.candidates))]
    stages = [row.stage for row in found.candidates]
    assert {note for note, stage in zip(notes, stages, strict=True) if stage == "divergence"} == {"after 1,024"}
    assert {note for note, stage in zip(notes, stages, strict=True) if stage == "tasks"} == {""}
    assert set(report_plot.comparable_rates(found)) == {100.0}
    document["candidates"][0]["predicted_decode_tok_s"] = None
    assert len(set(report_plot.comparable_rates(read(document)))) > 1, "not all are predicted: as measured"


def test_the_next_step_is_said_once(document: dict[str, Any]) -> None:
    document["why"].append("The next step up is as shipped, which needs 150.3 MB: KL 0 instead of 0.0075 nats.")
    assert Page(report.render(document)).text.count("The next step up") == 1
    document["next_step"] = None
    assert Page(report.render(document)).text.count("The next step up") == 1


def test_several_sequences(document: dict[str, Any]) -> None:
    document["budget"]["batch"] = 4
    text = Page(report.render(document)).text
    assert "for 4 sequences of 2,048 tokens" in text and "batch 4" in text


def test_nothing_fits(document: dict[str, Any]) -> None:
    document |= {"winner": None, "memory": None, "profile": None, "next_step": None, "answers": [], "why": ["Too big."]}
    document["budget"]["memory_bytes"] = 90_000_000
    text = Page(report.render(document)).text
    assert "Nothing fits: the smallest recipe, rtn(bits=4, embedding_bits=4) + snapkv(capacity=448)" in text
    assert "21.94 MB too much" in text and "Why none" in text


def test_a_bare_document_makes_a_page() -> None:
    bare = {"model": "m", "budget": {"memory_bytes": 10**9, "context": 512}, "candidates": [], "winner": None}
    assert "nothing can be recommended" in Page(report.render(bare)).text


def test_the_uncompressed_model_may_win(document: dict[str, Any]) -> None:
    document |= {"winner": 0, "candidates": document["candidates"][:1]}
    assert "The uncompressed model itself fits" in Page(report.render(document)).text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"winner": 99}, "winner 99 is no row: there are 25 candidates"),
        ({"budget": {"context": 1}}, "'budget.memory_bytes': Field required"),
        ({"candidates": [{"recipe": "x"}]}, "'candidates.0.fits': Field required"),
        ({"serving_baseline_bytes": "many"}, "'serving_baseline_bytes'"),
    ],
)
def test_what_is_no_document_is_named(document: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(ReportError, match="not a document of `thrifty fit --json`") as error:
        report.render(document | change)
    assert words in str(error.value)


def test_a_figure_that_is_no_number_is_refused(document: dict[str, Any]) -> None:
    document["candidates"][1]["quality"]["kl"]["value"] = math.nan
    with pytest.raises(ReportError, match=r"candidates\.1\.quality\.kl\.value.*finite"):
        report.render(document)


def test_from_a_saved_file(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "thrifty.frontier.report.report"]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([*words, SAMPLE], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("<!doctype html>") and done.stdout.rstrip().endswith("</html>")
    broken = tmp_path / "fit.json"
    broken.write_text("[", encoding="utf-8")
    failed = subprocess.run([*words, broken], capture_output=True, text=True, env=environment)
    assert failed.returncode == 1 and "as JSON" in failed.stderr and "Traceback" not in failed.stderr


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
def test_the_line_is_the_best_for_the_bytes(drawn: list[tuple[int, float, bool]]) -> None:
    bare = {"recipe": "r", "cache": [{}], "fits": True, "need_steady_bytes": 1, "weights_bytes": 1, "stage": "tasks"}
    rows = [
        bare | {"need_peak_bytes": need, "recovery": {"value": value, "low": value, "high": value} if known else None}
        for need, value, known in drawn
    ]
    fit = read({"model": "m", "budget": {"memory_bytes": 20, "context": 2}, "candidates": rows, "winner": None})
    plot = report_plot.plot(fit)
    assert plot is not None
    line = plot.views["recovery"].line if "recovery" in plot.views else []
    for need in range(1, 41):
        within = [value for other, value, known in drawn if known and other <= need]
        reached = [value for other, value in line if other <= need]
        assert (max(within) if within else None) == (reached[-1] if reached else None)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=12), st.booleans())
def test_every_mark_lies_inside_the_drawing(divergences: list[float], missing: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "recipe": "r",
            "cache": [{}],
            "fits": True,
            "need_peak_bytes": 100 + index * 7,
            "need_steady_bytes": 1,
            "weights_bytes": 1,
            "quality": {key: {"value": kl, "low": kl, "high": kl} for key in ("kl", "top1")},
        }
        for index, kl in enumerate(divergences)
    ]
    if missing:
        rows.append(copy.deepcopy(rows[0]) | {"quality": None, "stage": "predicted"})
    fit = read({"model": "m", "budget": {"memory_bytes": 150, "context": 2}, "candidates": rows, "winner": 0})
    plot = report_plot.plot(fit)
    assert plot is not None
    drawn = drawing(plot)
    assert drawn.lane == (missing and not plot.aside[-1])
    for mark in drawn.marks:
        assert drawn.left <= mark.x <= drawn.right and drawn.top <= mark.y <= drawn.bottom
        assert (mark.y > drawn.floor) == (plot.views["kl"].values[mark.index] is None)
    heights = {mark.index: mark.y for mark in drawn.marks}
    for one in heights:
        for other in heights:
            if (rows[one]["quality"] and rows[other]["quality"]) and divergences[one] <= divergences[other]:
                assert heights[one] <= heights[other]


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_compared_answer_is_the_whole_answer(baseline: str, answer: str) -> None:
    pieces = list(report_view.compared(baseline, answer))
    assert "".join(text for text, _ in pieces) == answer
    assert not any(other for _, other in report_view.compared(answer, answer))


def test_the_vendored_library_is_as_its_note_says() -> None:
    folder = report.PAGE / "vendor"
    library = (folder / "chart.umd.min.js").read_bytes()
    note = (folder / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(library).hexdigest() in note
    assert b"Chart.js v4.6.1" in library[:80] and "Chart.js 4.6.1" in note
    assert b"</script" not in library and b"<!--" not in library
