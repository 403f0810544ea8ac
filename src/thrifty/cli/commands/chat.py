"""`thrifty chat`: a conversation that remembers; Ctrl-C stops an answer, not the program."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from thrifty.cli.shared import opening, options, output, streams
from thrifty.cli.shared.interrupts import Interrupts
from thrifty.cli.shared.plain_prompt import NEXT_TURN, transcript
from thrifty.cli.shared.reading import Reader

EXAMPLE = 'thrifty chat smollm2-135m --system "Answer in one sentence." --temperature 0.7'

SESSION = "chat"
"""The name of the one session."""

HELP = (
    "/exit or Ctrl-D ends, Ctrl-C stops an answer, /clear forgets all, /undo takes back the last turn, /history shows "
    'it, """ begins and ends a text of several lines, /help is this.'
)
PLAIN = (
    "This model has no chat template: it is a base model, or its tokenizer came without one. It goes on with a plain "
    "transcript (User: …, Assistant: …) that holds the system message and all turns."
)


@options.takes_sampling
def command(
    model: options.ModelName,
    recipe: options.RecipePath = None,
    system: Annotated[str | None, typer.Option(help="A system message that starts every conversation.")] = None,
    tools: options.Tools = None,
    template_argument: options.TemplateArguments = None,
    control_tokens: options.ControlTokens = False,
    adapter: options.AdapterPath = None,
    session: Annotated[
        bool, typer.Option(help="With cache techniques: go on from the compressed cache instead of reading all again.")
    ] = True,
    memory: options.Memory = None,
    process_memory: options.ProcessMemory = None,
    threads: options.Threads = None,
    native: options.Native = None,
    no_copy: options.NoCopy = False,
    as_json: options.Json = False,
    *,
    sampling: dict[str, Any],
) -> None:
    """Talk with a model, turn by turn. With --json, one JSON line an answer, or an error in its place."""
    template = options.template_options(tools, template_argument, control_tokens)
    opening_text = streams.text_of(system, "--system") if system else None
    chosen = opening.read_recipe(recipe)
    bounds = {"memory": memory, "process_memory": process_memory}
    with opening.opened(
        model, recipe=chosen, **bounds, threads=threads, native=native, copy=not no_copy, adapter=adapter
    ) as thrifty:
        sampling = opening.with_adapter(sampling, adapter)
        goes_on = session and bool(chosen.cache)
        Conversation(thrifty, opening_text, sampling, as_json, template, SESSION if goes_on else None).run()
        if not as_json:
            opening.say_memory(thrifty)


class Conversation:
    """The turns so far and the loop that adds to them."""

    def __init__(
        self,
        thrifty: Any,
        system: str | None,
        sampling: dict[str, Any],
        as_json: bool,
        template: dict[str, Any] | None = None,
        session: str | None = None,
    ) -> None:
        """session: the name of one to go on from, None to have every prompt read whole."""
        self.thrifty = thrifty
        self.opening = [{"role": "system", "content": system}] if system else []
        self.turns: list[dict[str, str]] = []
        self.sampling = sampling
        self.as_json = as_json
        self.template = template or {}
        self.session = session
        self.interrupts = Interrupts()

    def run(self) -> None:
        """Read messages until /exit or the end of the input."""
        if not self.thrifty.model.require_tokenizer().has_chat_template:
            output.note(PLAIN)
            self.sampling = {**self.sampling, "stop": (*self.sampling.get("stop", ()), NEXT_TURN)}
        reader = Reader()
        if reader.interactive:
            output.note(HELP)
        with self.interrupts:
            while True:
                try:
                    text = self.interrupts.read(reader.read)
                except EOFError:
                    return
                except KeyboardInterrupt:
                    output.note("\n(/exit or Ctrl-D ends)")
                    continue
                if text in ("/exit", "/quit", "/bye"):
                    return
                if text.startswith("/") and "\n" not in text:
                    self.obey(text)
                elif text:
                    self.answer(text)

    def obey(self, line: str) -> None:
        """Carry out a command that starts with a slash."""
        if line == "/clear":
            self.turns.clear()
            self.drop_session()
            output.note("forgotten")
        elif line == "/undo":
            del self.turns[-2:]
            self.drop_session()
            output.note(f"{len(self.turns) // 2} turns remain")
        elif line == "/history":
            for turn in [*self.opening, *self.turns]:
                output.note(f"{turn['role']}: {turn['content']}")
        elif line == "/help":
            output.note(HELP)
        else:
            output.note(f"no command {line.split()[0]!r}. {HELP}")

    def answer(self, question: str) -> None:
        """One turn. An interrupted answer stays in the conversation as far as it came; a question that was refused, or
        stopped before its first word, does not.
        """
        from thrifty.errors import ThriftyError

        started = time.perf_counter()
        try:
            asked = {"role": "user", "content": streams.text_of(question, "the message")}
            messages = [*self.opening, *self.turns, asked]
            handle = self.submit(messages)
            first = self.stream(handle, started)
        except ThriftyError as error:
            output.failure(str(error), type(error).__name__, self.as_json)
            return
        text, reason = handle.samples[0].text, handle.samples[0].finish_reason
        if text or reason != "cancelled":
            self.turns += [asked, {"role": "assistant", "content": text}]
        if self.as_json:
            answer = {"text": text, "finish_reason": reason} | opening.usage_of(handle, first)
            output.json_line(answer | opening.memory_of(self.thrifty))

    def submit(self, messages: list[dict[str, str]]) -> Any:
        """Queue the conversation. A session that cannot go on with it (a template tells old turns otherwise, memory
        went to others) begins anew.
        """
        from thrifty.errors import SessionError

        sampling = self.sampling if self.session is None else {**self.sampling, "session": self.session}
        try:
            return opening.submit(self.thrifty, messages, sampling, plain=transcript, template=self.template)
        except SessionError as error:
            if error.code == "session_busy":
                raise
            output.note("(the conversation is read anew)")
            self.drop_session()
            return opening.submit(self.thrifty, messages, sampling, plain=transcript, template=self.template)

    def drop_session(self) -> None:
        """What was read so far is not gone on from."""
        if self.session is not None:
            self.thrifty.engine.sessions.drop(self.session)

    def stream(self, handle: Any, started: float) -> float | None:
        """Print the answer as it comes; Ctrl-C cancels it before the next step. Returns the seconds until its first
        token. Raises the request's error.
        """
        first, printed = None, 0
        while not handle.finished and not self.interrupts.asked:
            self.thrifty.engine.drive(handle)
            if first is None and handle.usage.generated_tokens:
                first = time.perf_counter() - started
            text = handle.samples[0].text
            if not self.as_json and len(text) > printed:
                sys.stdout.write(text[printed:])
                sys.stdout.flush()
            printed = len(text)
        if not handle.finished:
            handle.cancel()
            output.note("\n(stopped)")
        if not self.as_json:
            sys.stdout.write("\n")
            sys.stdout.flush()
        if handle.error is not None:
            raise handle.error
        return first
