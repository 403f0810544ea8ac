"""The program around the commands: help, suggestions, messages, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from thrifty.cli.main import CommandFiles
from thrifty.errors import BudgetError

COMMANDS = list(CommandFiles())
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # works installed or not


def test_the_commands_are_those_of_the_first_version() -> None:
    assert set(COMMANDS) >= {"run", "chat", "bench", "fit", "models", "pull", "techniques", "doctor"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_json_recipe_and_debug(name: str, thrifty: Callable[..., Any]) -> None:
    found = thrifty(name, "--help")
    assert found.code == 0
    assert f"Example: thrifty {name}" in " ".join(found.out.split())
    for option in ("--json", "--recipe", "--debug"):
        assert option in found.out


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    probe = (
        "import sys; from thrifty.cli.main import build\n"
        "try: build()(args=['--help'])\nexcept SystemExit: pass\n"
        "heavy = ('torch', 'pydantic', 'numpy', 'transformers', 'asyncio', 'ssl')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    seconds = []
    for _ in range(3):  # the fastest of three, for a machine that does other things too
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=ENVIRONMENT
        )
        seconds.append(time.perf_counter() - start)
    assert done.stdout.strip().endswith("[]")
    assert min(seconds) < 0.5 * float(os.environ.get("THRIFTY_TEST_PATIENCE", "2"))


@pytest.mark.parametrize(("word", "meant"), [("bnch", "bench"), ("tecniques", "techniques"), ("fti", "fit")])
def test_an_unknown_command_gets_the_nearest(word: str, meant: str, thrifty: Callable[..., Any]) -> None:
    found = thrifty(word)
    assert found.code == 2
    assert f"No such command '{word}'. Did you mean '{meant}'?" in found.message


def test_an_unknown_option_gets_the_nearest(thrifty: Callable[..., Any]) -> None:
    found = thrifty("bench", "some-model", "--recip", "x.toml")
    assert found.code == 2
    assert "No such option: --recip" in found.message
    assert "--recipe" in found.message


def test_a_known_error_is_one_message_without_a_traceback(
    thrifty: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_with(monkeypatch, BudgetError("5 MB do not fit; use 6 MB"))
    found = thrifty("techniques")
    assert (found.code, found.out) == (1, "")
    assert found.message == "Error: 5 MB do not fit; use 6 MB"


def test_an_unknown_error_says_how_to_see_more(thrifty: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_with(monkeypatch, KeyError("oops"))
    found = thrifty("techniques")
    assert found.code == 1
    assert "Traceback" not in found.err
    assert "KeyError: 'oops'" in found.message and "--debug" in found.message


MISTAKES = [
    (("techniques", "--stage", "wieghts"), 2, "BadParameter", "no stage 'wieghts'. Did you mean 'weights'?"),
    (("bench", "--recip", "x.toml", "model"), 2, "NoSuchOption", "No such option: --recip"),
    (("fit", "model", "--memory", "many", "--context", 64), 2, "BadParameter", "many"),
    (("fit", "model", "--memory", "1GB"), 2, "MissingParameter", "Missing option '--context'"),
    (("pull", "smolm2"), 1, "CheckpointError", "Did you mean 'smollm2-135m'?"),
    (("roofline", "smollm2-135m", "-m", "rtx4090"), 1, "MachineError", "Did you mean 'rtx-4090'?"),
    (("bnch",), 2, "UsageError", "Did you mean 'bench'?"),
]


@pytest.mark.parametrize(("words", "code", "kind", "message"), MISTAKES, ids=[kind for _, _, kind, _ in MISTAKES])
def test_an_error_under_json_is_one_json_object(
    words: tuple[Any, ...], code: int, kind: str, message: str, thrifty: Callable[..., Any]
) -> None:
    found = thrifty(*words, "--json")
    assert found.code == code and found.err == "" and found.out.count("\n") == 1
    assert set(found.json()) == {"error", "kind"} and found.json()["kind"] == kind
    assert message in found.json()["error"]
    people = thrifty(*words)
    assert people.code == code and people.out == "" and message.split()[-1] in people.message


def test_what_was_not_foreseen_is_json_too(thrifty: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_with(monkeypatch, KeyError("oops"))
    assert "KeyError: 'oops'" in thrifty("techniques", "--json").json()["error"]
    _fail_with(monkeypatch, MemoryError())
    assert "out of memory" in thrifty("techniques", "--json").json()["error"]


def test_a_word_after_two_dashes_is_no_option(thrifty: Callable[..., Any]) -> None:
    assert "no technique '--json'" in thrifty("techniques", "--", "--json").message


def test_help_pages_are_whole_sentences_about_what_there_is(thrifty: Callable[..., Any]) -> None:
    page = " ".join(thrifty("--help").out.replace("│", " ").split())
    assert "measured speeds, what is missing and how to get it." in page
    assert "Serve a model by OpenAI's API and Anthropic's" in page
    assert "with the [[weights]] of a recipe" in " ".join(thrifty("compress", "--help").out.split())


@pytest.mark.parametrize("words", [("--debug", "techniques"), ("techniques", "--debug")])
def test_debug_lets_the_error_through(
    words: tuple[str, ...], thrifty: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_with(monkeypatch, BudgetError("no room"))
    with pytest.raises(BudgetError, match="no room"):
        thrifty(*words)


def test_an_interrupt_exits_with_130(thrifty: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_with(monkeypatch, KeyboardInterrupt())
    assert thrifty("techniques").code == 130


def test_a_closed_pipe_is_quiet() -> None:
    command = [sys.executable, "-m", "thrifty.cli", "techniques"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


def test_the_version(thrifty: Callable[..., Any]) -> None:
    import thrifty as package

    assert thrifty("--version").out.strip() == f"thrifty {package.__version__}"


def _fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("thrifty.cli.commands.techniques._of_stages", fail)
