"""`thrifty chat`: a conversation that remembers; Ctrl-C stops an answer, not the program."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from thrifty.cli import opening, options, output

EXAMPLE = 'thrifty chat smollm2-135m --system "Answer in one sentence." --temperature 0.7'

HELP = "/exit ends, /clear forgets all, /undo takes back the last turn, /history shows it, /help is this."


@options.takes_sampling
def command(
    model: options.ModelName,
    recipe: options.RecipePath = None,
    system: Annotated[str | None, typer.Option(help="A system message that starts every conversation.")] = None,
    memory: options.Memory = None,
    threads: options.Threads = None,
    native: options.Native = None,
    as_json: options.Json = False,
    *,
    sampling: dict[str, Any],
) -> None:
    """Talk with a model, turn by turn. With --json, one JSON line an answer."""
    chosen = opening.read_recipe(recipe)
    with opening.opened(model, recipe=chosen, memory=memory, threads=threads, native=native) as thrifty:
        Conversation(thrifty, system, sampling, as_json).run()


class Conversation:
    """The turns so far and the loop that adds to them."""

    def __init__(self, thrifty: Any, system: str | None, sampling: dict[str, Any], as_json: bool) -> None:
        self.thrifty = thrifty
        self.opening = [{"role": "system", "content": system}] if system else []
        self.turns: list[dict[str, str]] = []
        self.sampling = sampling
        self.as_json = as_json

    def run(self) -> None:
        """Read lines until /exit or the end of the input."""
        interactive = sys.stdin.isatty()
        if interactive:
            _editing()
            output.note(HELP)
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                output.note("\n(/exit or Ctrl-D ends)")
                continue
            if line in ("/exit", "/quit", "/bye"):
                return
            if line.startswith("/"):
                self.obey(line)
            elif line:
                self.answer(line)

    def obey(self, line: str) -> None:
        """Carry out a command that starts with a slash."""
        if line == "/clear":
            self.turns.clear()
            output.note("forgotten")
        elif line == "/undo":
            del self.turns[-2:]
            output.note(f"{len(self.turns) // 2} turns remain")
        elif line == "/history":
            for turn in [*self.opening, *self.turns]:
                output.note(f"{turn['role']}: {turn['content']}")
        elif line == "/help":
            output.note(HELP)
        else:
            output.note(f"no command {line.split()[0]!r}. {HELP}")

    def answer(self, question: str) -> None:
        """One turn. An interrupted answer stays in the conversation as far as it came; a refused question
        does not.
        """
        from thrifty.errors import ThriftyError

        messages = [*self.opening, *self.turns, {"role": "user", "content": question}]
        started = time.perf_counter()
        try:
            handle = opening.submit(self.thrifty, messages, self.sampling)
            first = self.stream(handle, started)
        except ThriftyError as error:
            output.error(str(error))
            return
        text = handle.samples[0].text
        self.turns += [messages[-1], {"role": "assistant", "content": text}]
        if self.as_json:
            reason = handle.samples[0].finish_reason
            output.json_line({"text": text, "finish_reason": reason} | opening.usage_of(handle, first))

    def stream(self, handle: Any, started: float) -> float | None:
        """Print the answer as it comes; Ctrl-C cancels it. Returns the seconds until its first token."""
        first = None
        try:
            for event in handle:
                first = first if first is not None else time.perf_counter() - started
                if not self.as_json and event.text:
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            handle.cancel()
            output.note("\n(stopped)")
        if not self.as_json:
            sys.stdout.write("\n")
            sys.stdout.flush()
        return first


def _editing() -> None:
    import importlib

    importlib.import_module("readline")  # gives input() line editing and a history
