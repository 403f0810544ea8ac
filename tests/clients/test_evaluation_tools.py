"""lm-eval's local-completions, and the load generators guidellm and aiperf: they run to their end without an error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.clients.conftest import ROOT, Served

PROGRAMS = Path(sys.executable).parent
AIPERF = Path(os.environ.get("THRIFTY_AIPERF", str(ROOT / ".venv-aiperf" / "bin" / "aiperf")))
OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
TASK = """task: words
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, temperature: 0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}]
"""


CHOICE = """task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
target_delimiter: " "
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def run(*words: str, folder: Path, **environment: str) -> str:
    """What a program printed; it must end well."""
    done = subprocess.run(
        words, cwd=folder, env=OFFLINE | environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_lm_evals_local_completions(server: Served, tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    words = [("1, 2, 3,", "4"), ("Monday, Tuesday,", "Wednesday")]
    items.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in words))
    (tmp_path / "words.yaml").write_text(TASK % items)
    arguments = f"model={server.model},base_url={server.openai}/completions,tokenizer_backend=None,num_concurrent=2"
    program = str(PROGRAMS / "lm_eval")
    run(
        program, "run", "--model", "local-completions", "--model_args", arguments, "--tasks", "words",
        "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"),
        folder=tmp_path, OPENAI_API_KEY=server.key,
    )  # fmt: skip
    (results,) = tmp_path.glob("out/**/results_*.json")
    assert "exact_match,none" in json.loads(results.read_text())["results"]["words"]


def test_lm_evals_local_completions_score_texts(server: Served, tokenizer_directory: Path, tmp_path: Path) -> None:
    """Choices are log-likelihoods of prompts (`echo`); the ids are another tokenizer's, so any choice may be better."""
    items = tmp_path / "items.jsonl"
    rows = [("word1 word2", ["word3", "word9 word4"], 0), ("word5", ["word7", "word8"], 1)]
    items.write_text("".join(json.dumps({"question": q, "choices": c, "label": a}) + "\n" for q, c, a in rows))
    (tmp_path / "choices.yaml").write_text(CHOICE % items)
    arguments = (
        f"model={server.model},base_url={server.openai}/completions,num_concurrent=2,tokenizer_backend=huggingface,"
        f"tokenizer={tokenizer_directory}"
    )
    run(
        str(PROGRAMS / "lm_eval"), "run", "--model", "local-completions", "--model_args", arguments,
        "--tasks", "choices", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"),
        folder=tmp_path, OPENAI_API_KEY=server.key,
    )  # fmt: skip
    (results,) = tmp_path.glob("out/**/results_*.json")
    assert 0.0 <= json.loads(results.read_text())["results"]["choices"]["acc,none"] <= 1.0


def test_guidellm(server: Served, tokenizer_directory: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": f"Count to {place}.", "output_tokens_count": 8}) + "\n" for place in range(4))
    )
    run(
        str(PROGRAMS / "guidellm"), "run",
        "--backend", f"kind=openai_http,target={server.url},model={server.model},api_key={server.key}",
        "--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=4",
        "--data", f"kind=json_file,path={prompts}", "--tokenizer", f"kind=hf_auto,model={tokenizer_directory}",
        "--output", f"kind=json,path={tmp_path / 'report.json'}", "--disable-console",
        folder=tmp_path,
    )  # fmt: skip
    (benchmark,) = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    told = benchmark["metrics"]["request_totals"]
    assert told["errored"] == 0 and told["successful"] == 4


def test_aiperf(server: Served, tokenizer_directory: Path, tmp_path: Path) -> None:
    if not AIPERF.exists():
        pytest.skip(f"aiperf is not installed at {AIPERF}")
    cached = tmp_path / "home" / "hub" / "models--tests--words"  # aiperf finds tokenizers by a hub's names alone
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tokenizer_directory, cached / "snapshots" / ("0" * 40))
    run(
        str(AIPERF), "profile", "--model", server.model, "--url", server.url, "--endpoint-type", "chat", "--streaming",
        "--api-key", server.key, "--tokenizer", "tests/words", "--request-count", "4", "--concurrency", "2",
        "--synthetic-input-tokens-mean", "16", "--output-tokens-mean", "8", "--artifact-dir", str(tmp_path),
        "--ui", "none", folder=tmp_path, HF_HOME=str(tmp_path / "home"),
    )  # fmt: skip
    (report,) = tmp_path.glob("**/profile_export_aiperf.json")
    told = json.loads(report.read_text())
    assert told["request_count"]["avg"] == 4 and not told.get("error_summary")
