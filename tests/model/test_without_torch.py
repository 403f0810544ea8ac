"""What users run needs no torch: the README's commands and every cache technique, in a fresh interpreter without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.model

FOLDER = Path(__file__).parents[1] / "without_torch"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(FOLDER), *sys.path])}
COMMANDS = {
    "help": ["--help"],
    "run": ["run", "smollm2-135m", "Why is the sky blue?", "--memory", "150MB", "--max-tokens", "8"],
    "run with a recipe": ["run", "smollm2-135m", "Hello", "--recipe", "{recipe}", "--max-tokens", "8", "--json"],
    "eval": ["eval", "recall-2m", "--tasks", "recall", "--items", "2", "--length", "256", "--recipe", "{recipe}"],
    "bench": ["bench", "smollm2-135m", "--contexts", "64", "--json"],
    "fit": ["fit", "recall-2m", "--memory", "20MB", "--context", "512", "--minutes", "0.3", "-o", "{folder}/best.toml"],
    "reproduce": ["reproduce", "scbench", "--minutes", "1"],
    "techniques": ["techniques"],
    "models": ["models"],
    "doctor": ["doctor"],
}  # fmt: skip


def run(words: list[str], folder: Path, standard_input: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=ENVIRONMENT, cwd=folder, input=standard_input
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('[[cache]]\ntechnique = "snapkv"\ncapacity = 128\n[[cache]]\ntechnique = "kivi"\nbits = 4\n')
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_without_torch(name: str, tmp_path: Path, recipe: Path, smollm2: Path) -> None:
    words = [word.format(recipe=recipe, folder=tmp_path) for word in COMMANDS[name]]
    done = run(["-m", "thrifty.cli", *words], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "torch" not in done.stderr


def test_a_chat_runs_without_torch(tmp_path: Path, smollm2: Path) -> None:
    done = run(["-m", "thrifty.cli", "chat", "smollm2-135m", "--max-tokens", "8"], tmp_path, "Hello\n")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


@pytest.mark.parametrize("model", ["smollm2-135m", "recall-2m"])
def test_every_cache_technique_and_a_batch_run_without_torch(model: str, tmp_path: Path, smollm2: Path) -> None:
    done = run([str(FOLDER / "everything.py"), model], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "8 in one batch" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["run", "smollm2-135m", "Hello", "--reference"],
        ["bench", "smollm2-135m", "--contexts", "64", "--reference"],
    ],
    ids=["run", "bench"],
)
def test_what_needs_torch_says_how_to_install_it(words: list[str], tmp_path: Path, smollm2: Path) -> None:
    done = run(["-m", "thrifty.cli", *words], tmp_path)
    assert done.returncode == 1
    assert "pip install 'thrifty-engine[torch]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_reference_says_how_to_install_torch(tmp_path: Path, smollm2: Path) -> None:
    probe = "import thrifty.reference as r\ntry: r.load({!r})\nexcept Exception as e: print(type(e).__name__, e)"
    done = run(["-c", probe.format(str(smollm2))], tmp_path)
    assert done.stdout.startswith("MissingExtra"), done.stderr
    assert "thrifty-engine[torch]" in done.stdout


def test_the_larger_models_are_told_of_without_torch(tmp_path: Path) -> None:
    done = run(["-m", "thrifty.cli", "models", "--json"], tmp_path)
    assert {"qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"} <= {word.strip('",') for word in done.stdout.split()}
