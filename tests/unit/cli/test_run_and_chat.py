"""`thrifty run` and `thrifty chat` on a tiny checkpoint: answers, history, interrupts, mistakes."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.checkpoint import write_checkpoint

from thrifty.cli.commands.chat import Conversation
from thrifty.cli.shared.interrupts import Interrupts
from thrifty.errors import PromptError

RECIPE = '[[cache]]\ntechnique = "kivi"\nbits = 4\n'


def test_run_streams_an_answer(thrifty: Callable[..., Any], checkpoint: Path) -> None:
    found = thrifty("run", checkpoint, "Hello", "--max-tokens", 8, "--threads", 1)
    assert found.code == 0
    assert len(found.out.strip("\n")) > 0
    assert "memory at its peak:" in found.message and "of the whole process" in found.message


def test_the_size_of_a_converted_copy_is_said_before_it_is_made(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    words = ("run", checkpoint, "Hello", "--max-tokens", 2, "--threads", 1)
    assert "is converted once" not in thrifty(*words, "--no-copy").err
    assert not (tmp_path / "cache").exists() or {path.name for path in (tmp_path / "cache").iterdir()} <= {"keys"}
    told = f"{checkpoint} is converted once: 0.9 MB in {tmp_path / 'cache'} (--no-copy keeps no copy)"
    assert told in thrifty(*words).message
    assert (tmp_path / "cache" / "converted").is_dir()
    assert "is converted once" not in thrifty(*words).err


def test_an_adapter_answers_otherwise(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.lora_files import write_lora
    from tests.unit.engine.corridor import random_adapter

    from thrifty.models import load

    write_lora(tmp_path / "lora", random_adapter(load(checkpoint), 4, 1), rank=4, alpha=8)
    words = ("run", checkpoint, "Hello", "--max-tokens", 8, "--threads", 1, "--json")
    plain, adapted = (thrifty(*words, *more).json() for more in ((), ("--adapter", tmp_path / "lora")))
    assert plain["text"] != adapted["text"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    chat = thrifty("chat", checkpoint, *words[3:], "--adapter", tmp_path / "lora")
    assert chat.json()["text"] == adapted["text"]
    missing = thrifty("run", checkpoint, "Hello", "--adapter", tmp_path / "none")
    assert missing.code == 1 and "is no directory" in missing.message


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
        (["run", "CHECKPOINT", "x", "--max-tokens", "0"], 2, "'0' is not a positive whole number. Write e.g. 512"),
        (["run", "CHECKPOINT", "x", "--max-tokens", "all"], 2, "'all' is not a positive whole number"),
        (
            ["run", "CHECKPOINT", "x", "--template-argument", "a"],
            2,
            "value for --template-argument: 'a' is not KEY=JSON",
        ),
        (["run", "CHECKPOINT", "x", "--template-argument", "a=low"], 2, "'a=low' is not KEY=JSON"),
        (["run", "CHECKPOINT", "x", "--template-argument", "a=1"], 1, "leave it out. It takes no arguments at all."),
        (["run", "CHECKPOINT", "x", "--tools", "/nowhere.json"], 2, "cannot read /nowhere.json"),
        (["run", "CHECKPOINT", "x", "--raw", "--template-argument", "a=1"], 2, "--template-argument needs the chat"),
        (["run", "CHECKPOINT", "caf\udce9"], 1, "the prompt is not UTF-8 text: byte 0xE9 at position 3"),
        (["run", "CHECKPOINT", "x", "--system", "\udcff"], 1, "--system is not UTF-8 text: byte 0xFF at position 0"),
        (["run", "CHECKPOINT", "x", "--logit-bias", "a"], 2, "Invalid value for --logit-bias: 'a' is not TOKEN=BIAS"),
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


def test_too_little_memory_is_told_before_and_after_a_model_was_converted(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    words = ("run", checkpoint, "x", "--max-tokens", 1, "--threads", 1)
    before = thrifty(*words, "--memory", "10kB")
    assert thrifty(*words).code == 0
    after = thrifty(*words, "--memory", "10kB")
    for refused, message in ((before, "Nothing was converted"), (after, "budget of")):
        assert (refused.code, refused.out) == (1, "")
        assert message in refused.message and "10 kB" in refused.message and "Traceback" not in refused.err


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
    first, second = (json.loads(line) for line in found.out.strip().splitlines())
    assert set(first) >= {"text", "finish_reason", "prompt_tokens", "decode_tok_s"}
    assert second["prompt_tokens"] > first["prompt_tokens"], "the history is part of the prompt"


def test_chat_json_is_a_line_for_a_refused_question_too(
    thrifty: Callable[..., Any], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("word " * 3000 + "\nHello\n"))
    found = thrifty("chat", checkpoint, "--max-tokens", 4, "--json", "--threads", 1)
    refused, answer = (json.loads(line) for line in found.out.strip().splitlines())
    assert "the context holds 4096" in refused["error"] and refused["kind"].endswith("Error")
    assert "text" in answer and found.err == ""


@pytest.mark.parametrize("words", [["chat"], ["run", "x"], ["run", "x", "--system", "y"], ["run", "x", "--raw"]])
def test_a_folder_without_a_tokenizer_is_refused_by_name(
    words: list[str], thrifty: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    found = thrifty(words[0], folder, *words[1:], "--threads", 1)
    assert found.code == 1
    assert "the checkpoint has no tokenizer.json" in found.message and "add the file" in found.message


def test_a_refused_question_leaves_the_conversation_as_it_was(
    thrifty: Callable[..., Any], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("word " * 3000 + "\nHello\n"))
    found = thrifty("chat", checkpoint, "--max-tokens", 4, "--threads", 1)
    assert found.code == 0
    assert "the context holds 4096" in found.message
    assert len(found.out.strip()) > 0


class Script:
    """An engine and a handle in one: a step adds a piece of text; the user presses Ctrl-C in the second."""

    def __init__(self, *pieces: str, interrupt_at: int) -> None:
        self.cancelled = self.finished = False
        self.error: Exception | None = None
        self.samples = [SimpleNamespace(text="", finish_reason="cancelled")]
        self.usage = SimpleNamespace(generated_tokens=0)
        self.engine = self
        self._pieces, self._interrupt_at = list(pieces), interrupt_at

    def drive(self, handle: Any) -> None:
        self.samples[0].text += self._pieces.pop(0)
        self.usage.generated_tokens += 1
        if self.usage.generated_tokens == self._interrupt_at:
            signal.raise_signal(signal.SIGINT)

    def cancel(self) -> None:
        self.cancelled = True


def test_ctrl_c_stops_the_answer_and_keeps_what_came(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script("two ", "pieces", "never", interrupt_at=2)
    monkeypatch.setattr("thrifty.cli.shared.opening.submit", lambda *_, **__: script)
    conversation = Conversation(script, None, {}, as_json=False)
    with conversation.interrupts:
        conversation.answer("a question")
    assert script.cancelled
    assert [turn["content"] for turn in conversation.turns] == ["a question", "two pieces"]
    captured = capsys.readouterr()
    assert captured.out == "two pieces\n" and "(stopped)" in captured.err


def test_ctrl_c_before_the_first_word_takes_the_question_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script("never", interrupt_at=0)

    def submit(*_: object, **__: object) -> Script:
        signal.raise_signal(signal.SIGINT)  # while the prompt is made
        return script

    monkeypatch.setattr("thrifty.cli.shared.opening.submit", submit)
    conversation = Conversation(script, None, {}, as_json=False)
    with conversation.interrupts:
        conversation.answer("a question")
    assert script.cancelled and conversation.turns == []
    assert "(stopped)" in capsys.readouterr().err


def test_interrupts_strike_only_while_a_line_is_read() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:

        def interrupted() -> str:
            signal.raise_signal(signal.SIGINT)
            return "not read"

        with pytest.raises(KeyboardInterrupt):
            interrupts.read(interrupted)
        assert not interrupts.asked
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.asked
        assert interrupts.read(lambda: "a line") == "a line" and not interrupts.asked
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_while_answering_does_not_end_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PromptError("no")

    monkeypatch.setattr("thrifty.cli.shared.opening.submit", refuse)
    conversation = Conversation(None, None, {}, as_json=False)
    conversation.answer("a question")
    assert conversation.turns == []
    assert "Error: no" in capsys.readouterr().err


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a chat template."""
    folder = write_checkpoint(tmp_path_factory.mktemp("base") / "llama")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|start|>", "eos_token": "<|end|>"}))
    return folder


def test_without_a_template_chat_goes_on_with_a_transcript_and_says_so(
    thrifty: Callable[..., Any], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("My name is Zebulon.\nWhat is it?\n"))
    found = thrifty("chat", base, "--max-tokens", 4, "--json", "--system", "Be brief.", "--logit-bias", "257=-inf")
    first, second = (json.loads(line) for line in found.out.strip().splitlines())
    assert "has no chat template" in found.message and "plain transcript" in found.message
    transcript = "Be brief.\nUser: My name is Zebulon.\nAssistant:"
    assert first["prompt_tokens"] == len(transcript)
    assert second["prompt_tokens"] > len(transcript + "\nUser: What is it?\nAssistant:")
    monkeypatch.setattr(sys, "stdin", io.StringIO("<|end|>\n"))
    (spelled,) = (json.loads(line) for line in thrifty("chat", base, "--max-tokens", 1, "--json").out.splitlines())
    assert spelled["prompt_tokens"] == len("User: <|end|>\nAssistant:"), "what is typed ends no turn"


def test_without_a_template_run_goes_on_with_plain_text_and_says_so(thrifty: Callable[..., Any], base: Path) -> None:
    words = ("run", base, "Hello", "--max-tokens", 2, "--json")
    alone = thrifty(*words)
    assert alone.json()["prompt_tokens"] == len("Hello")
    assert "has no chat template: it goes on with the prompt as plain text." in alone.message
    found = thrifty(*words, "--system", "Be brief.")
    assert found.json()["prompt_tokens"] == len("Be brief.\n\nHello")
    assert "it goes on with the system message and the prompt as plain text." in found.message
    assert not thrifty(*words, "--raw").err, "who asks for plain text is told nothing"
    refused = thrifty(*words, "--template-argument", "enable_thinking=false")
    assert refused.code == 1 and not refused.err
    assert "has no chat template that could take --template-argument; leave it out." in refused.json()["error"]


@pytest.mark.parametrize("words", [("chat",), ("run", "Hello"), ("run", "Hello", "--system", "Be brief.")])
def test_a_model_without_a_tokenizer_is_told_by_what_is_missing(
    thrifty: Callable[..., Any], tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "llama")
    (folder / "tokenizer.json").unlink()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    found = thrifty(words[0], folder, *words[1:], "--max-tokens", 2)
    assert found.code == 1 and "the checkpoint has no tokenizer.json" in found.message
    assert "did not foresee" not in found.message


def test_flags_of_the_chat_template(thrifty: Callable[..., Any], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "llama")
    template = "{{ tools | tojson }}{{ enable_thinking }}{{ messages[0].content }}"
    settings = {"bos_token": "<|start|>", "eos_token": "<|end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "f"}]')
    words = ("run", folder, "<|end|>", "--max-tokens", "fit", "--logit-bias", "257=-inf", "--json", "--stop", "a")
    words = (*words, "--tools", tools, "--template-argument", "enable_thinking=false")
    assert thrifty(*words).json()["prompt_tokens"] == len('[{"name": "f"}]' + "False" + "<|end|>")
    assert thrifty(*words, "--control-tokens").json()["prompt_tokens"] == len('[{"name": "f"}]' + "False") + 1


def test_a_block_is_one_message(thrifty: Callable[..., Any], checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('"""one\n\n/two"""\n/history\n"""unfinished\nblock'))
    found = thrifty("chat", checkpoint, "--max-tokens", 2, "--threads", 1)
    assert "user: one\n\n/two" in found.err and found.out.count("\n") >= 2


class Terminal:
    """`thrifty chat` in a terminal of its own."""

    def __init__(self, checkpoint: Path) -> None:
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            words = ["-m", "thrifty", "chat", str(checkpoint), "--max-tokens", "3000", "--logit-bias", "257=-inf"]
            words += ["--threads", "1", "--reference"]  # slow enough to be stopped in the middle of an answer
            os.execv(sys.executable, [sys.executable, *words])
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Read until a text comes, and forget everything up to it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come: {self.seen!r}"
            if select.select([self.terminal], [], [], 0.2)[0]:
                self.seen += os.read(self.terminal, 65536).decode(errors="replace")
        self.seen = self.seen.split(text, 1)[1]


@pytest.mark.long
def test_chat_in_a_terminal(checkpoint: Path) -> None:
    chat = Terminal(checkpoint)
    chat.wait_for("/help is this.")
    chat.wait_for("> ")
    chat.type("half a line")
    chat.wait_for("half a line")
    time.sleep(0.2)
    chat.type("\x03")
    chat.wait_for("(/exit or Ctrl-D ends)")
    chat.wait_for("> ")
    for pause in (0.0, 0.02, 0.1, 0.4):
        chat.type("a question\r")
        time.sleep(pause)
        chat.type("\x03")
        time.sleep(0.3)
        chat.type("\r")  # readline looks at a signal with the next key where it came just before it waits
        chat.wait_for("> ")
    chat.type("/clear\r")
    chat.wait_for("forgotten")
    chat.wait_for("> ")
    chat.type('"""block\rits end\r\x04')  # Ctrl-D ends the text, not the program
    time.sleep(0.5)
    chat.type("\x03")
    chat.wait_for("(stopped)")
    chat.wait_for("> ")
    chat.type("/history\r")
    chat.wait_for("user: block")
    chat.wait_for("its end")
    chat.wait_for("> ")
    chat.type("/clear\r")
    chat.wait_for("forgotten")
    chat.wait_for("> ")
    chat.type("line one\rline two\rline three")  # pasted, its last line unfinished
    chat.wait_for("line three")
    chat.type("\r")
    time.sleep(0.5)
    chat.type("\x03")
    chat.wait_for("(stopped)")
    chat.wait_for("> ")
    chat.type("/history\r")
    chat.wait_for("user: line one")
    chat.wait_for("line three")
    chat.wait_for("> ")
    chat.type("\x04")
    assert os.waitpid(chat.process, 0)[1] == 0


def run_program(*words: object, text: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "thrifty", *map(os.fsencode, map(str, words))]
    return subprocess.run(command, input=text, capture_output=True, env={**os.environ, **environment}, check=False)


@pytest.mark.long
def test_a_folder_and_an_output_that_are_not_utf_8(thrifty: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_checkpoint(tmp_path / "plain").rename(folder)  # the libraries write to no such name
    options = ("--max-tokens", 40, "--threads", 1, "--seed", 1, "--logit-bias", "257=-inf")
    done = run_program("run", folder, "-", *options, text="é".encode(), PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and b"did not foresee" not in done.stderr
    assert b"?" in done.stdout and done.stdout.isascii()
    text = thrifty("run", folder, "é", *options, "--json").json()["text"]
    assert text.encode("ascii", "replace") + b"\n" == done.stdout, "nothing is cut off"


@pytest.mark.long
@pytest.mark.parametrize("words", [["techniques"], ["techniques", "--json"]])
def test_an_output_without_room_is_told(words: list[str]) -> None:
    command = [sys.executable, "-m", "thrifty", *words]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert b"there is no room left where the output goes" in done.stderr
    assert b"did not foresee" not in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.long
def test_a_pipe_that_is_closed_early_ends_without_a_word(checkpoint: Path) -> None:
    words = ["run", str(checkpoint), "x", "--max-tokens", "2000", "--threads", "1", "--logit-bias", "257=-inf"]
    process = subprocess.Popen(
        [sys.executable, "-m", "thrifty", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1
