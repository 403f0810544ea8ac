"""`thrifty run` and `thrifty chat` on a tiny checkpoint: answers, history, interrupts, mistakes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from thrifty.cli.commands.chat import Conversation
from thrifty.errors import PromptError

RECIPE = '[[cache]]\ntechnique = "kivi"\nbits = 4\n'


def test_run_streams_an_answer(thrifty: Callable[..., Any], checkpoint: Path) -> None:
    found = thrifty("run", checkpoint, "Hello", "--max-tokens", 8, "--threads", 1)
    assert found.code == 0
    assert len(found.out.strip("\n")) > 0
    assert found.err == ""


def test_run_json_holds_the_text_that_is_streamed(thrifty: Callable[..., Any], checkpoint: Path) -> None:
    words = ("run", checkpoint, "Hello", "--max-tokens", 8, "--threads", 1)
    streamed = thrifty(*words).out
    answer = thrifty(*words, "--json").json()
    assert streamed == answer["text"] + "\n"
    assert answer["model"] == str(checkpoint) and answer["recipe"] == "as shipped"
    assert answer["finish_reason"] in ("length", "stop")
    assert answer["prompt_tokens"] > 5 and 1 <= answer["generated_tokens"] <= 8
    assert answer["first_token_seconds"] > 0


def test_run_with_a_recipe_a_system_message_and_flags(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    flags = "--temperature 0.8 --top-k 20 --top-p 0.9 --min-p 0.01 --seed 3 --repetition-penalty 1.1 "
    flags += "--presence-penalty 0.1 --frequency-penalty 0.1 --logit-bias 65=-inf --stop zzz --max-tokens 6"
    words = ("run", checkpoint, "Hi", "--recipe", recipe, "--system", "Be brief.", "--memory", "64MB", "--json")
    first, again = thrifty(*words, *flags.split()).json(), thrifty(*words, *flags.split()).json()
    assert first["recipe"] == "kivi(bits=4)"
    assert first["text"] == again["text"]
    assert "A" not in first["text"] or first["text"] == ""


def test_a_bound_on_the_cache_is_kept_or_refused(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[cache]]\ntechnique = "streaming"\nwindow = "budget"\n')
    words = ("run", checkpoint, "Hello", "--max-tokens", 6, "--threads", 1, "--recipe", recipe)
    assert thrifty(*words, "--cache-memory", "20MB").code == 0
    refused = thrifty(*words, "--cache-memory", "5kB")
    assert refused.code != 0 and "no answer fits; use cache_bytes = " in " ".join(refused.err.split())
    unbounded = thrifty(*words)
    assert unbounded.code != 0 and "--cache-memory" in unbounded.err


def test_raw_leaves_out_the_chat_template(thrifty: Callable[..., Any], checkpoint: Path) -> None:
    chat = thrifty("run", checkpoint, "Hello", "--max-tokens", 2, "--json").json()
    raw = thrifty("run", checkpoint, "Hello", "--raw", "--max-tokens", 2, "--json").json()
    assert raw["prompt_tokens"] == 5 < chat["prompt_tokens"]


def test_a_dash_reads_standard_input(
    thrifty: Callable[..., Any], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    found = thrifty("run", checkpoint, "-", "--raw", "--max-tokens", 2, "--json").json()
    assert found["prompt_tokens"] == len("from a pipe")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "CHECKPOINT", "  "], 2, "the prompt is empty; write at least one word."),
        (["run", "CHECKPOINT", "x", "--raw", "--system", "y"], 2, "needs the chat template; leave out --raw"),
        (["run", "CHECKPOINT", "x", "--temperature", "-1"], 2, "greater than or equal to 0"),
        (["run", "CHECKPOINT", "x", "--top-p", "2"], 1, "top_p = 2.0"),
        (["run", "CHECKPOINT", "x", "--max-tokens", "9999"], 1, "max_tokens = 9999"),
        (["run", "CHECKPOINT", "x", "--logit-bias", "a"], 2, "is not TOKEN=BIAS"),
        (["run", "CHECKPOINT", "x", "--memory", "10kB"], 1, "budget of"),
        (["run", "CHECKPOINT", "x", "--memory", "lots"], 2, "is not a size"),
        (["run", "CHECKPOINT", "x", "--recipe", "/nowhere.toml"], 1, "cannot read recipe"),
        (["run", "no-such-model", "x"], 1, "no-such-model"),
        (["run", "smollm2-135", "x"], 1, "Did you mean 'smollm2-135m'?"),
        (["run", "CHECKPOINT", "word " * 3000], 1, "the context holds 4096"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str], code: int, message: str, thrifty: Callable[..., Any], checkpoint: Path
) -> None:
    found = thrifty(*[str(checkpoint) if word == "CHECKPOINT" else word for word in words])
    assert found.code == code
    assert message in found.message
    assert "Traceback" not in found.err and "did not foresee" not in found.err
    assert found.out == ""


def test_a_bad_recipe_names_the_nearest_option(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[cache]]\ntechnique = "kivi"\nbit = 4\n')
    found = thrifty("run", checkpoint, "x", "--recipe", recipe)
    assert found.code == 1
    assert "technique 'kivi' has no option 'bit'. Did you mean 'bits'?" in found.message


def test_chat_takes_turns_and_obeys(
    thrifty: Callable[..., Any], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "Hello\n/history\nAnd again\n/undo\n/nonsense\n/clear\n/history\n\n/exit\nnot read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    found = thrifty("chat", checkpoint, "--max-tokens", 4, "--system", "Be brief.", "--threads", 1)
    assert found.code == 0
    assert found.out.count("\n") >= 2
    assert "system: Be brief." in found.err and "user: Hello" in found.err
    assert "1 turns remain" in found.err and "no command '/nonsense'" in found.err


def test_chat_json_is_a_line_an_answer(
    thrifty: Callable[..., Any], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nAgain\n"))
    found = thrifty("chat", checkpoint, "--max-tokens", 4, "--json", "--threads", 1)
    import json

    first, second = (json.loads(line) for line in found.out.strip().splitlines())
    assert set(first) >= {"text", "finish_reason", "prompt_tokens", "decode_tok_s"}
    assert second["prompt_tokens"] > first["prompt_tokens"], "the history is part of the prompt"


def test_a_refused_question_leaves_the_conversation_as_it_was(
    thrifty: Callable[..., Any], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("word " * 3000 + "\nHello\n"))
    found = thrifty("chat", checkpoint, "--max-tokens", 4, "--threads", 1)
    assert found.code == 0
    assert "the context holds 4096" in found.message
    assert len(found.out.strip()) > 0


class Interrupted:
    """A handle whose user presses Ctrl-C after two pieces."""

    def __init__(self) -> None:
        self.cancelled = False
        self.samples = [type("Sample", (), {"text": "two pieces", "finish_reason": "cancelled"})]

    def __iter__(self) -> Iterator[Any]:
        for text in ("two ", "pieces"):
            yield type("Event", (), {"text": text})
        raise KeyboardInterrupt

    def cancel(self) -> None:
        self.cancelled = True


def test_ctrl_c_stops_the_answer_and_keeps_what_came(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = Interrupted()
    monkeypatch.setattr("thrifty.cli.opening.submit", lambda *_, **__: handle)
    conversation = Conversation(None, None, {}, as_json=False)
    conversation.answer("a question")
    assert handle.cancelled
    assert [turn["content"] for turn in conversation.turns] == ["a question", "two pieces"]
    captured = capsys.readouterr()
    assert captured.out == "two pieces\n" and "(stopped)" in captured.err


def test_an_error_while_answering_does_not_end_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PromptError("no")

    monkeypatch.setattr("thrifty.cli.opening.submit", refuse)
    conversation = Conversation(None, None, {}, as_json=False)
    conversation.answer("a question")
    assert conversation.turns == []
    assert "Error: no" in capsys.readouterr().err
