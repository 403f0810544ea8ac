"""Options of `thrifty serve` alone: several models, their adapters, and what requests may ask for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.shared.quantities import parse_bytes

MODELS = "Several models"
REQUESTS = "What requests may ask for"

OneModel = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        show_default=False,
        help="A name from `thrifty models`, a GGUF file, a model folder or a hub id.",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME=MODEL",
        rich_help_panel=MODELS,
        help="One of several, loaded when it is asked for; repeat. --memory is for all together.",
    ),
]
ModelRoom = Annotated[
    int,
    typer.Option(
        "--model-room",
        metavar="SIZE",
        parser=parse_bytes,
        rich_help_panel=MODELS,
        help="What each loaded one has beside its weights, at least.",
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="NAME=FOLDER",
        rich_help_panel=MODELS,
        help="A LoRA adapter as PEFT saves it, asked for as MODEL:NAME. Of several models: MODEL:NAME=FOLDER.",
    ),
]
AdaptersFrom = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        rich_help_panel=MODELS,
        help="Clients may load and unload the adapters in it while the server runs.",
    ),
]
PREFILL_SLICE = 40.0
"""Milliseconds. With eight chats the prompts of some take half of the time; a step of the others takes about 20 ms. So
later tokens stay within 60 ms, and the first ones come sooner than with the engine's own 25.
"""

PrefillSlice = Annotated[
    float,
    typer.Option(min=0, metavar="MS", help="How long a piece of a prompt may hold up answers under way, about."),
]
Traces = Annotated[
    bool, typer.Option("--traces", help="Send a span of each request, as OTEL_EXPORTER_OTLP_ENDPOINT says.")
]
RequestRecipes = Annotated[
    bool,
    typer.Option(
        rich_help_panel=REQUESTS, help="Whether they may choose techniques of cache and decoding, and a cache's bound."
    ),
]
RequestTechniques = Annotated[
    list[str] | None,
    typer.Option(
        "--request-technique",
        metavar="NAME",
        rich_help_panel=REQUESTS,
        help="A technique that they may choose; repeat. Default: any.",
    ),
]
RequestCacheMemory = Annotated[
    int | None,
    typer.Option(
        "--request-cache-memory",
        metavar="SIZE",
        parser=parse_bytes,
        rich_help_panel=REQUESTS,
        help="Bound on the cache of each, whether it brings one or not.",
    ),
]
Drafts = Annotated[
    list[str] | None,
    typer.Option(
        "--draft", metavar="MODEL", rich_help_panel=REQUESTS, help="A model that they may draft with; repeat."
    ),
]
Priority = Annotated[
    int,
    typer.Option(
        min=0, max=1000, metavar="N", rich_help_panel=REQUESTS, help="Priorities from -N to N may be asked for."
    ),
]
KeyRequests = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", rich_help_panel=REQUESTS, help="Most requests of one API key at a time; more get 429."
    ),
]


def technique_names(given: Iterable[str] | None) -> tuple[str, ...] | None:
    """Those of --request-technique, None where it was not given. Raises typer.BadParameter with the nearest name."""
    if not given:
        return None
    from thrifty import registry
    from thrifty.errors import nearest

    known = {*registry.names("cache"), *registry.names("decoding")}
    for name in given:
        if name not in known:
            raise typer.BadParameter(f"--request-technique {name!r} is no technique. {nearest(name, known)}")
    return tuple(given)
