"""`thrifty run`: one prompt, one streamed answer."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli.shared import opening, options, output, streams

if TYPE_CHECKING:
    from thrifty.engine.request import Handle

EXAMPLE = 'thrifty run smollm2-135m "Why is the sky blue?" --memory 150MB --recipe recipe.toml'

PLAIN = "This model has no chat template: it goes on with {} as plain text."


@options.takes_sampling
def command(
    model: options.ModelName,
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", show_default=False, help="The question; `-` reads standard input."),
    ],
    recipe: options.RecipePath = None,
    system: Annotated[str | None, typer.Option(help="A system message before the prompt.")] = None,
    tools: options.Tools = None,
    template_argument: options.TemplateArguments = None,
    control_tokens: options.ControlTokens = False,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    adapter: options.AdapterPath = None,
    memory: options.Memory = None,
    process_memory: options.ProcessMemory = None,
    cache_memory: options.CacheMemory = None,
    threads: options.Threads = None,
    native: options.Native = None,
    no_copy: options.NoCopy = False,
    as_json: options.Json = False,
    *,
    sampling: dict[str, Any],
) -> None:
    """Answer one prompt, streaming."""
    started = time.perf_counter()
    template = options.template_options(tools, template_argument, control_tokens)
    messages = _messages(prompt, system, raw, template)
    chosen = opening.read_recipe(recipe)
    bounds = {"memory": memory, "process_memory": process_memory}
    with opening.opened(
        model, recipe=chosen, **bounds, threads=threads, native=native, copy=not no_copy, adapter=adapter
    ) as thrifty:
        if not (raw or template or thrifty.model.require_tokenizer().has_chat_template):
            output.note(PLAIN.format("the system message and the prompt" if system else "the prompt"))
        sampling = opening.with_adapter(sampling, adapter)
        handle = opening.submit(thrifty, messages, sampling, raw=raw, cache_memory=cache_memory, template=template)
        first = _stream(handle, started, quiet=as_json)
        if as_json:
            sample = handle.samples[0]
            answer = {
                "model": model,
                "recipe": chosen.label(),
                "text": sample.text,
                "finish_reason": sample.finish_reason,
            }
            output.json_line(answer | opening.usage_of(handle, first) | opening.memory_of(thrifty))
        else:
            opening.say_memory(thrifty)


def _messages(prompt: str, system: str | None, raw: bool, template: Mapping[str, Any]) -> list[dict[str, str]]:
    """What is asked. Raises typer.BadParameter for an empty prompt, and for what goes without the chat template."""
    text = streams.text_of(sys.stdin.read() if prompt == "-" else prompt, "the prompt")
    if not text.strip():
        raise typer.BadParameter("the prompt is empty; write at least one word.", param_hint="PROMPT")
    if raw and system:
        raise typer.BadParameter("a system message needs the chat template; leave out --raw.", param_hint="--system")
    if raw and template:
        flag = opening.FLAGS[next(iter(template))]
        raise typer.BadParameter(f"{flag} needs the chat template; leave out one.", param_hint="--raw")
    messages = [{"role": "system", "content": streams.text_of(system, "--system")}] if system else []
    return [*messages, {"role": "user", "content": text}]


def _stream(handle: Handle, started: float, quiet: bool) -> float | None:
    """Print the answer as it comes, unless quiet. Returns the seconds until its first event. Raises its error."""
    first = None
    for event in handle:
        first = first if first is not None else time.perf_counter() - started
        if not quiet and event.text:
            sys.stdout.write(event.text)
            sys.stdout.flush()
    if not quiet:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return first
