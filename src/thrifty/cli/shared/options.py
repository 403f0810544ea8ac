"""Options that several commands share, with one wording each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from thrifty.cli.shared.quantities import FIT, parse_argument, parse_bias, parse_bytes, parse_limit, read_objects
from thrifty.cli.shared.streams import text_of

SAMPLING = "Sampling"
TEMPLATE = "Chat template"
MACHINE = "Machine"

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A name from `thrifty models`, a GGUF file, a model folder or a hub id.",
    ),
]
RecipePath = Annotated[
    Path | None,
    typer.Option("--recipe", "-r", metavar="FILE", help="A recipe (TOML): the techniques to run with."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text for people.")]
Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        parser=parse_bytes,
        rich_help_panel=MACHINE,
        help="Bound on weights + cache + workspace, e.g. 150MB.",
    ),
]
ProcessMemory = Annotated[
    int | None,
    typer.Option(
        "--process-memory",
        metavar="SIZE",
        parser=parse_bytes,
        rich_help_panel=MACHINE,
        help="Bound on the whole process, Python included, as the system counts it, e.g. 300MB.",
    ),
]
CacheMemory = Annotated[
    int | None,
    typer.Option(
        "--cache-memory",
        metavar="SIZE",
        parser=parse_bytes,
        rich_help_panel=MACHINE,
        help="Bound on this answer's cache alone, at any moment, e.g. 20MB.",
    ),
]
AdapterPath = Annotated[
    Path | None,
    typer.Option("--adapter", metavar="FOLDER", help="A LoRA adapter as PEFT saves it, for every answer."),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, rich_help_panel=MACHINE, help="CPU threads. Default: all cores."),
]
NoCopy = Annotated[
    bool,
    typer.Option(
        "--no-copy",
        rich_help_panel=MACHINE,
        help="Keep no converted copy of the model on the disk: convert it in memory at every start.",
    ),
]
Native = Annotated[
    bool | None,
    typer.Option(
        "--native/--reference",
        rich_help_panel=MACHINE,
        show_default="native",
        help="Native kernels, or the slow torch reference (an extra). Neither stands in for the other.",
    ),
]

Tools = Annotated[
    Path | None,
    typer.Option(
        "--tools",
        metavar="FILE",
        rich_help_panel=TEMPLATE,
        help="Tools that the model may call: a JSON list of their schemas.",
    ),
]
TemplateArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--template-argument",
        metavar="KEY=JSON",
        rich_help_panel=TEMPLATE,
        help="For the chat template, e.g. enable_thinking=false; repeat for several.",
    ),
]
ControlTokens = Annotated[
    bool,
    typer.Option(
        "--control-tokens",
        rich_help_panel=TEMPLATE,
        help="Let messages spell out control tokens. Default: there they are text.",
    ),
]


def template_options(tools: Path | None, arguments: list[str] | None, control_tokens: bool) -> dict[str, Any]:
    """Those of `Thrifty.chat` that these flags ask for. Raises typer.BadParameter."""
    chosen: dict[str, Any] = {}
    if tools is not None:
        chosen["tools"] = read_objects(tools, "--tools")
    if arguments:
        chosen["template_arguments"] = dict(parse_argument(text_of(part, "--template-argument")) for part in arguments)
    if control_tokens:
        chosen["control_tokens_in_messages"] = True
    return chosen


def _sampling(
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, rich_help_panel=SAMPLING, help="0 is greedy, the default."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, rich_help_panel=SAMPLING, help="Best K tokens only; 0 is off.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(rich_help_panel=SAMPLING, help="Nucleus: this much probability; 1 is off.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(rich_help_panel=SAMPLING, help="Drop tokens below this share of the best; 0 is off."),
    ] = None,
    repetition_penalty: Annotated[float | None, typer.Option(rich_help_panel=SAMPLING, help="1 is off.")] = None,
    presence_penalty: Annotated[float | None, typer.Option(rich_help_panel=SAMPLING, help="0 is off.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(rich_help_panel=SAMPLING, help="0 is off.")] = None,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKEN=BIAS", rich_help_panel=SAMPLING, help="Repeat for several tokens."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(rich_help_panel=SAMPLING, help="Makes a sampled answer repeatable.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            parser=parse_limit,
            rich_help_panel=SAMPLING,
            help="Longest answer, in tokens; `fit` for as many as fit. Default: 256, or what fits where that is less.",
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=SAMPLING, help="Text that ends the answer; repeat for several."),
    ] = None,
) -> None:
    """The signature of this function is the list of sampling flags."""


def takes_sampling(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the sampling flags; it gets those that were set as one mapping `sampling`."""
    flags = inspect.signature(_sampling, eval_str=True).parameters
    own = [
        parameter
        for parameter in inspect.signature(function, eval_str=True).parameters.values()
        if parameter.name != "sampling"
    ]

    @functools.wraps(function)
    def command(**arguments: Any) -> Any:
        chosen = {name: arguments.pop(name) for name in flags}
        given = {name: value for name, value in chosen.items() if value is not None and value != []}
        if "logit_bias" in given:
            given["logit_bias"] = dict(parse_bias(part) for part in given["logit_bias"])
        if "stop" in given:
            given["stop"] = tuple(text_of(text, "--stop") for text in given["stop"])
        if given.get("max_tokens") == FIT:
            given["max_tokens"] = None
        return function(sampling=given, **arguments)

    parameters = [flag.replace(kind=inspect.Parameter.KEYWORD_ONLY) for flag in (*own, *flags.values())]
    # typer reads both; __wrapped__ would lead it back to the function without the flags
    vars(command).update(__signature__=inspect.Signature(parameters))
    command.__annotations__ = {flag.name: flag.annotation for flag in parameters}
    vars(command).pop("__wrapped__")
    return command
