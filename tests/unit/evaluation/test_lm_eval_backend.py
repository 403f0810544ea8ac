"""lm-eval's tasks through the backend: its numbers are those of the model, its errors say what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import EOS, text_tokens, tiny_model

from thrifty.engine.engine import Engine
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.records import RecordFile
from thrifty.evaluation.tasks import TaskError
from thrifty.reference.loading import build

lm_eval = pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

KIVI = [{"technique": "kivi", "bits": 2, "residual": 0}]
QUESTION = "In a far away land there lived a baker. Every day the baker made {{n}} loaves and sold all of them. Sold:"
TASK = f"""
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: DATA
test_split: test
output_type: multiple_choice
doc_to_text: "{QUESTION}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_model(), native=False, prefix_tree=False, threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    lines = [{"n": number, "choices": [f"{number}", f"{number + 7} or so", "none"], "answer": 0} for number in range(6)]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tiny_choice.yaml").write_text(TASK.replace("DATA", str(data)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        yield TaskManager(include_path=str(folder), include_defaults=False)


def backend() -> Any:
    from thrifty.evaluation import lm_eval_backend

    return lm_eval_backend


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_it_is_registered_by_its_name() -> None:
    from lm_eval.api.registry import get_model

    registered = backend().ThriftyLM
    assert get_model("thrifty") is registered


def test_likelihoods_are_those_of_the_model(engine: Engine) -> None:
    model = backend().ThriftyLM(engine=engine, cache=[])
    context, text = "The capital of France is", " Paris, on the Seine"
    ((total, greedy),) = model.loglikelihood([asked(context, text)], disable_tqdm=True)
    tokens = list((context + text).encode())
    rows = torch.log_softmax(build(engine.model).logits(tokens), -1)
    places = range(len(context), len(tokens))
    assert total == pytest.approx(sum(float(rows[place - 1, tokens[place]]) for place in places), abs=1e-2)
    assert greedy is all(int(rows[place - 1].argmax()) == tokens[place] for place in places)


def test_a_rolling_likelihood_counts_every_token_once(engine: Engine) -> None:
    model = backend().ThriftyLM(engine=engine, cache=[])
    text = bytes(text_tokens(90)).decode()
    (whole,) = model.loglikelihood_rolling([asked(text)])
    rows = torch.log_softmax(build(engine.model).logits([EOS, *text.encode()]), -1)
    assert whole == pytest.approx(sum(float(rows[at, token]) for at, token in enumerate(text.encode())), abs=1e-2)


def test_a_text_longer_than_the_context_rolls_on() -> None:
    small = Engine(tiny_model(), native=False, prefix_tree=False, threads=1, context=42)
    model = backend().ThriftyLM(engine=small, cache=[])
    text = bytes(text_tokens(90)).decode()
    (found,) = model.loglikelihood_rolling([asked(text)])
    tokens, expected = [EOS, *text.encode()], 0.0
    for start in range(0, 90, 40):
        window = tokens[start : start + 41]
        rows = torch.log_softmax(build(small.model).logits(window), -1)
        expected += sum(float(rows[at, token]) for at, token in enumerate(window[1:]))
    assert found == pytest.approx(expected, abs=1e-2)
    with pytest.raises(TaskError, match="does not fit the context of 41; choose a task with shorter questions"):
        model.generate_until([asked("x" * 40, {"until": ["."], "max_gen_toks": 8})])
    small.close()


def test_generation_is_greedy_and_ends_at_a_stop_string(engine: Engine) -> None:
    model = backend().ThriftyLM(engine=engine, cache=[])
    (whole,) = model.generate_until([asked("Once upon a time", {"until": [], "max_gen_toks": 24})])
    stop = whole[5:7]
    (cut,) = model.generate_until([asked("Once upon a time", {"until": [stop], "max_gen_toks": 24})])
    assert cut == whole[: whole.find(stop)]
    with pytest.raises(TaskError, match="asks for sampled answers"):
        model.generate_until([asked("Once", {"do_sample": True, "temperature": 0.8})])


def test_a_task_of_a_file_runs_beside_the_baseline_and_is_kept(engine: Engine, manager: Any, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordFile(path, {}) as records:
        row = backend().compare("tiny_choice", 4, 0, engine, engine, KIVI, records, manager)
    assert (row.task, row.metric, row.items) == ("lm-eval:tiny_choice", "acc", 4)
    assert row.score is not None and 0 <= row.score.value <= 1 and row.beside["compressed"] == 1.0
    with RecordFile(path, {}) as records, pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend(), "evaluate", None)
        again = backend().compare("tiny_choice", 4, 0, engine, engine, KIVI, records, manager)
    assert again == row, "what is kept is not run again"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:-1]))
    with RecordFile(path, {}) as records:
        assert backend().compare("tiny_choice", 4, 0, engine, engine, KIVI, records, manager) == row


def test_errors_say_what_to_do(engine: Engine, manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskError, match=r"lm-eval has no task 'tiny_chois' .*`lm_eval ls tasks` lists them"):
        backend().evaluate("tiny_chois", engine, [], 2, 0, manager)
    with pytest.raises(MeasurementError, match="none of the 6 requests .* was long enough for the recipe"):
        backend().evaluate("tiny_choice", engine, [{"technique": "kivi", "residual": 10_000}], 2, 0, manager)

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub")

    monkeypatch.setattr(lm_eval, "simple_evaluate", unreachable)
    with pytest.raises(TaskError, match="'arc_easy' could not run .*ai2_arc.* come from the Hugging Face hub"):
        backend().evaluate("arc_easy", engine, [], 2, 0)
