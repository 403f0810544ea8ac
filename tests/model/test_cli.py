"""The command line from the shell, on SmolLM2-135M."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.model

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # works installed or not
PATIENCE = float(os.environ.get("THRIFTY_TEST_PATIENCE", "2"))  # a busy machine takes longer than an idle one


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "thrifty.cli", *(str(word) for word in words)]


def test_run_answers_sensibly_and_soon(smollm2: Path) -> None:
    words = command("run", smollm2, "What is the capital of France? Answer in one word.", "--max-tokens", 24)
    subprocess.run(
        words, capture_output=True, check=True, env=ENVIRONMENT
    )  # the first start may convert the checkpoint
    seconds, answer = [], ""
    for _ in range(2):
        start = time.perf_counter()
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
            assert process.stdout is not None
            first = process.stdout.read(1)
            seconds.append(time.perf_counter() - start)
            answer = first + process.stdout.read()
        assert process.returncode == 0
    assert "Paris" in answer
    assert min(seconds) < 4.0 * PATIENCE


def test_a_start_imports_neither_transformers_nor_a_compiler(smollm2: Path) -> None:
    probe = (
        "import sys; from thrifty.cli.main import build\n"
        f"try: build()(args=['run', {str(smollm2)!r}, 'Hi', '--max-tokens', '2'])\nexcept SystemExit: pass\n"
        "heavy = ('transformers', 'torch._dynamo', 'torch._inductor', 'sympy', 'gguf', 'huggingface_hub')\n"
        "print('HEAVY', [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout.strip().endswith("HEAVY []")


def test_bench_reports_a_plausible_roofline(smollm2: Path) -> None:
    done = subprocess.run(
        command("bench", smollm2, "--contexts", "128", "--json"),
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    row = report["contexts"]["128"]
    assert 95e6 < row["bytes_per_token"] < 110e6, "all weights and a little cache"
    assert 0 < row["roofline_fraction"] < 1.2
    assert 100 < report["ledger_peak_mb"] < report["peak_rss_mb"] < 300


def test_chat_remembers(smollm2: Path) -> None:
    done = subprocess.run(
        command("chat", smollm2, "--max-tokens", 24, "--json"),
        input="My name is Ada.\nWhat is my name?\n",
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert second["prompt_tokens"] > first["prompt_tokens"] + 20, "question and answer of the first turn are in it"
    assert len(first["text"]) > 10 and len(second["text"]) > 10
