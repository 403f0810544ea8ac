"""The table of cache techniques: its rows, its page, what it keeps of a run, and the model that it hands over."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch
from benchmarks.cache_table import program, rows
from benchmarks.cache_table.export import exported, write
from benchmarks.cache_table.page import page, page_of, reasons, table
from benchmarks.cache_table.questions import questions
from benchmarks.cache_table.rows import THRIFTY, Row
from benchmarks.cache_table.sections import SECTIONS, Section, sections
from tests.checkpoint import write_checkpoint
from tests.tiny import ByteTokenizer, tiny_model

from thrifty import reference, registry
from thrifty.errors import CheckpointError
from thrifty.evaluation.forcing import MeasurementError
from thrifty.storage.journal import Journal

SHARES = (0.5, 0.25)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("name", registry.names("cache"))
def test_every_technique_has_rows_and_their_tables_are_recipes(name: str) -> None:
    found = [row for row in rows.thrifty_rows([name], SHARES) if row.technique == name]
    assert found and len({row.label for row in found}) == len(found)
    for row in found:
        for table_ in row.tables(1024):
            registry.build("cache", table_)
    if name not in ("full", "kivi"):
        bounds = [registry.build("cache", row.tables(1024)[0]).kept(1024) for row in found]
        assert bounds == sorted(bounds, reverse=True), "a smaller budget keeps no more"


def test_budgets_are_the_techniques_own() -> None:
    found = {row.label: row.tables(1000) for row in rows.thrifty_rows(["snapkv", "streaming", "kivi"], [0.25])}
    assert found["Thrifty full"] == []
    assert found["Thrifty snapkv 0.25"] == [{"technique": "snapkv", "keep": 0.25}]
    assert found["Thrifty streaming 0.25"] == [{"technique": "streaming", "window": 246}]
    assert [found[f"Thrifty kivi {bits} bits"][0]["bits"] for bits in (8, 4, 2)] == [8, 4, 2]


def test_a_sections_options_stand_beside_the_budget_and_on_the_page() -> None:
    section = Section("some", options={"kvmerger": {"first": 0, "last": 3}})
    found = {row.label: row.tables(1000) for row in rows.thrifty_rows(["kvmerger", "h2o"], [0.5], section.options)}
    assert found["Thrifty kvmerger 0.5"] == [{"technique": "kvmerger", "keep": 0.5, "first": 0, "last": 3}]
    assert found["Thrifty h2o 0.5"] == [{"technique": "h2o", "keep": 0.5}]
    assert "`kvmerger` has first = 0, last = 3 here." in page_of(section, [], [], {})


def test_a_recipe_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "both.toml"
    path.write_text('[[cache]]\ntechnique = "snapkv"\nkeep = 0.5\n[[cache]]\ntechnique = "kivi"\nbits = 2\n')
    (row,) = rows.recipe_rows([path])
    assert row.label == "Thrifty snapkv → kivi both"
    assert [one["technique"] for one in row.tables(9)] == ["snapkv", "kivi"]


def test_presses_are_asked_for_what_is_taken_away() -> None:
    found = rows.kvpress_rows(["snapkv", "ada-kv"], [0.25])
    assert [row.label for row in found] == [
        "kvpress full",
        "kvpress snapkv 0.25 (defaults)",
        "kvpress snapkv 0.25 (set alike)",
        "kvpress ada-kv 0.25 (defaults)",
        "kvpress ada-kv 0.25 (set alike)",
    ]
    assert found[0].press == {} and found[3].press == {"press": "AdaKVPress", "inner": "SnapKVPress", "ratio": 0.75}
    alike = {"window_size": 32, "kernel_size": 7}
    assert found[4].press == {"press": "AdaKVPress", "inner": "SnapKVPress", "ratio": 0.75, "options": alike}


def test_rows_that_are_set_alike_have_the_same_window_and_kernel() -> None:
    """What a press is told is what Thrifty's defaults are; what a press cannot be told is told to Thrifty's."""
    names = {"window_size": "window", "kernel_size": "kernel"}
    for name, (ours, theirs) in rows.MATCHED.items():
        for row in rows.matched_rows([name], [0.25]):
            assert row.engine == THRIFTY and row.setting == "set alike"
            policy = registry.build("cache", row.tables(1000)[0])
            assert all(getattr(policy, option) == value for option, value in ours.items())
            assert all(getattr(policy, names[option]) == value for option, value in theirs.items())
    assert rows.matched_rows(["h2o"], [0.25]) == []


def test_a_press_that_is_another_method_has_its_own_name() -> None:
    assert "h2o" not in rows.PRESSES and rows.PRESSES["observed-attention"]["press"] == "ObservedAttentionPress"


@pytest.mark.parametrize(("length", "share", "falls"), [(2048, 0.25, True), (2048, 0.125, True), (6000, 0.25, False)])
def test_a_pyramid_that_the_press_gives_up_is_marked(length: int, share: float, falls: bool) -> None:
    """With its window of 64 and beta 20 the least layer must have 64 of length · share / 20."""
    found = rows.kvpress_rows(["pyramidkv"], [share], length)
    assert bool(found[1].note) == falls and "gives up its pyramid" in (found[1].note or "gives up its pyramid")
    assert not found[2].note, "set alike, its window is 8"
    section = Section("some", length=length)
    assert ("Read with care" in page_of(section, found, [], {})) == falls


def test_a_model_that_was_trained_on_the_questions_says_so() -> None:
    assert "trained on these tasks' own sentences" in page_of(Section("recall-2m"), [], [], {})
    assert "trained on" not in page_of(Section("smollm2-135m"), [], [], {})


FIGURES = {
    "Thrifty full": {
        "recall": {"score": 1.0},
        "speed": {"kept": 4e6, "prefill": 99.9, "decode": 10.0, "peak": 5e6, "process": 6e6},
    },
    "Thrifty snapkv 0.25": {"recall": {"score": 0.5}, "kl": {"kl": 0.1234, "top1": 0.75}, "speed": {"kept": 1e6}},
    "kvpress snapkv 0.25 (defaults)": {"recall": {"error": "WorkerError: gone"}, "kl": {"error": "WorkerError: gone"}},
}


def test_the_table_has_a_line_a_row_and_failures_say_why() -> None:
    asked = [
        *rows.thrifty_rows(["snapkv"], [0.25]),
        Row(THRIFTY, "new", ""),
        *rows.kvpress_rows(["snapkv"], [0.25])[1:2],
    ]
    lines = table(asked, ["recall", "kl"], FIGURES)
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert lines[2] == "| full | – | Thrifty | 4.0 MB (100.0%) | 1.00 | – | – | 100 | 10.0 | 5.0 | 6.0 |"
    assert lines[3] == "| snapkv | 0.25 | Thrifty | 1.0 MB (25.0%) | 0.50 | 0.1234 | 0.750 | – | – | – | – |"
    assert lines[4].startswith("| snapkv | 0.25 | kvpress (defaults) |") and lines[5].startswith("| new |")
    assert list(reasons(asked, FIGURES)) == ["- kvpress snapkv 0.25 (defaults) (recall, kl): WorkerError: gone"]
    text = page_of(Section("some-model", context=6000), asked, ["recall", "kl"], FIGURES)
    assert text.startswith("## some-model") and "a prompt of 6000 tokens." in text
    assert "What could not be measured" in text and text.splitlines()[4:6] == lines[:2]
    whole = page(dict.fromkeys(("threads", "machine", "date", "version"), "x"), [text, "the other"])
    assert text in whole and whole.endswith("the other")


def test_what_the_command_line_leaves_open_is_the_models_own() -> None:
    assert sections(program.parse([])) == list(SECTIONS)
    (own,) = sections(program.parse(["--model", SECTIONS[0].model, "--items", "2"]))
    assert own == dataclasses.replace(SECTIONS[0], items=2)
    assert sections(program.parse(["--model", "other", "--context", "0"])) == [Section("other", context=0)]


def test_a_failing_technique_is_a_row_and_nothing_is_measured_twice(tmp_path: Path) -> None:
    def measure(row: Row, part: str) -> dict[str, float]:
        if row.technique == "bad":
            raise MeasurementError("nothing was compressed")
        return {"score": 0.5}

    found: program.Results = {}
    work = [(Row(THRIFTY, "bad", ""), "recall"), (Row(THRIFTY, "good", ""), "recall")]
    path = tmp_path / "state.jsonl"
    with Journal(path, {"items": 1}, what="KV-cache table", remedy="") as held:
        program.run(measure, work, functools.partial(program.keep, held, {}, found))
    assert found["Thrifty bad"]["recall"] == {"error": "MeasurementError: nothing was compressed"}
    assert found["Thrifty good"]["recall"] == {"score": 0.5}
    with Journal(path, {"items": 1}, what="KV-cache table", remedy="") as held:
        assert [line["row"] for _, line in held.lines] == ["Thrifty bad", "Thrifty good"]


def test_a_run_writes_the_page_and_goes_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(checkpoint), "--techniques", "snapkv", "--budgets", "0.5", "--items", "1", "--no-peer"]
    words += ["--length", "300", "--context", "400", "--threads", "1", "--tasks", "recall,kl:scored=8", "--json"]
    words += ["--page", str(tmp_path / "page.md"), "--state", str(tmp_path / "state")]
    assert program.main(words) == 0
    document = json.loads(capsys.readouterr().out)
    full, half = document["rows"]["Thrifty full"], document["rows"]["Thrifty snapkv 0.5"]
    assert full["kl:scored=8"] == {"kl": 0.0, "top1": 1.0} and half["kl:scored=8"]["kl"] > 0
    assert 0.4 * full["speed"]["kept"] < half["speed"]["kept"] < full["speed"]["kept"] <= full["speed"]["peak"]
    monkeypatch.setattr(program, "run", lambda measure, work, *rest: pytest.fail(f"again: {work}"))
    assert program.main(words) == 0
    assert json.loads(capsys.readouterr().out) == document
    assert "| snapkv | 0.5 | Thrifty |" in (tmp_path / "page.md").read_text()


def test_speed_is_of_its_context_and_the_rest_is_not_asked_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", str(checkpoint), "--techniques", "full", "--items", "1", "--no-peer", "--length", "300"]
    words += ["--threads", "1", "--tasks", "recall", "--json", "--page", str(tmp_path / "page.md")]
    words += ["--state", str(tmp_path / "state")]
    done: list[list[str]] = []
    real = program.run
    monkeypatch.setattr(
        program, "run", lambda measure, work, add: (done.append([p for _, p in work]), real(measure, work, add))
    )
    for context in ("0", "300", "300", "350"):
        assert program.main([*words, "--context", context]) == 0
    assert done == [["recall"], ["speed"], ["speed"]]


def test_without_kvpress_its_rows_say_so(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--model",
        str(checkpoint),
        "--techniques",
        "keydiff",
        "--budgets",
        "0.5",
        "--items",
        "1",
        "--context",
        "0",
    ]
    words += ["--length", "300", "--threads", "1", "--tasks", "recall", "--json", "--python", str(tmp_path / "python")]
    words += ["--page", str(tmp_path / "page.md"), "--state", str(tmp_path / "state")]
    assert program.main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"]["kvpress keydiff 0.5 (defaults)"]["recall"]["error"].endswith(
        "python is missing: make kvpress"
    )


def test_the_exported_model_is_the_same_model(tmp_path: Path, checkpoint: Path) -> None:
    model = reference.load(checkpoint, dtype=torch.float32)
    write(model, tmp_path)
    tokens = list(range(40, 90))
    read = reference.load(tmp_path, dtype=torch.float32)
    for _, linear in model.decoder.linears():
        weight = linear.weight
        assert isinstance(weight, torch.Tensor)
        weight.data = weight.detach().bfloat16().float()
    assert torch.allclose(read.logits(tokens), model.logits(tokens), atol=1e-4)
    assert read.config == model.config
    spoken = [{"role": "user", "content": "It is 4711."}]
    assert read.tokenizer.encode_chat(spoken) == model.tokenizer.encode_chat(spoken)


def test_what_is_no_llama_is_not_exported(tmp_path: Path, checkpoint: Path) -> None:
    model = reference.build(tiny_model(windows=(None, 64)))
    with pytest.raises(CheckpointError, match="sliding windows: only plain Llamas are exported"):
        write(model, tmp_path)
    assert exported(str(checkpoint), tmp_path / "other") == checkpoint and not (tmp_path / "other").exists()


def test_kvpress_process_answers_each_question_after_the_prompt_alone(checkpoint: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is the oracle (extra 'dev')")
    from benchmarks.cache_table.peer import Peer

    peer = Peer(str(checkpoint), 1, [257])
    asked = questions(ByteTokenizer(), ["recall"], 300, 1, 0, 1)
    prompt = list(asked.items["recall"][0].prompt)
    fed = [[70, 71, 72], [80, 81]]
    together = peer.answer({}, prompt, fed, 6)["answers"]
    assert together == [peer.answer({}, prompt, [one], 6)["answers"][0] for one in fed]
    for question, said in zip(fed, together, strict=True):
        tokens = [*prompt, *question]
        with torch.inference_mode():
            logits = peer.model(input_ids=torch.tensor([tokens + said])).logits[0].float()
        for place, token in enumerate(said, len(tokens) - 1):
            assert logits[place].max() - logits[place, token] < 0.5, "the first choice, up to bf16's rounding"
    assert peer.diverge({}, prompt, fed[0]) == {"kl": 0.0, "top1": 1.0}
    found = peer.speed({}, prompt, fed[0])
    config = peer.model.config
    head = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert found["kept"] == (len(prompt) + len(fed[0])) * head
