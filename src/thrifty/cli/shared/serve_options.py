"""Options of `thrifty serve` alone, by the panels of its help."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.shared.quantities import parse_bytes, parse_room

ADDRESS = "Who may ask, and where"
LOAD = "Load"
MODELS = "Several models"
REQUESTS = "What requests may ask for"
CONVERSATIONS = "Conversations"
CLUSTER = "Cluster"

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
        show_default="64MB",
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
Host = Annotated[str, typer.Option("--host", rich_help_panel=ADDRESS, help="Address to listen at.")]
Port = Annotated[
    int, typer.Option("--port", min=0, max=65535, rich_help_panel=ADDRESS, help="Port; 0 takes any that is free.")
]
ApiKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        envvar="THRIFTY_API_KEY",
        rich_help_panel=ADDRESS,
        help="Clients must show it; repeat for several.",
    ),
]
Public = Annotated[
    bool,
    typer.Option("--public", rich_help_panel=ADDRESS, help="Serve an address that others reach without any key."),
]
Name = Annotated[
    str | None, typer.Option("--name", rich_help_panel=ADDRESS, help="Name that clients ask for. Default: MODEL.")
]
Context = Annotated[
    int | None,
    typer.Option("--context", min=1, rich_help_panel=LOAD, help="Most tokens of a prompt and its answer."),
]
Batch = Annotated[int, typer.Option("--batch", min=1, rich_help_panel=LOAD, help="Most sequences at a time.")]
Queue = Annotated[
    int,
    typer.Option("--queue", min=1, rich_help_panel=LOAD, help="Most requests that wait; more are refused with 429."),
]
PREFILL_SLICE = 40.0
"""Milliseconds. With eight chats the prompts of some take half of the time; a step of the others takes about 20 ms. So
later tokens stay within 60 ms, and the first ones come sooner than with the engine's own 25.
"""

PrefillSlice = Annotated[
    float,
    typer.Option(
        "--prefill-slice",
        min=0,
        metavar="MS",
        rich_help_panel=LOAD,
        help="How long a piece of a prompt may hold up answers under way, about.",
    ),
]
Drain = Annotated[
    float,
    typer.Option(
        "--drain",
        min=0,
        rich_help_panel=LOAD,
        help="Seconds that answers under way get to end when the server is told to stop.",
    ),
]
Traces = Annotated[
    bool,
    typer.Option(
        "--traces", rich_help_panel=LOAD, help="Send a span of each request, as OTEL_EXPORTER_OTLP_ENDPOINT says."
    ),
]
RequestRecipes = Annotated[
    bool,
    typer.Option(
        rich_help_panel=REQUESTS,
        help="Whether they may choose techniques of prompt, cache and decoding, and a cache's bound.",
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

Tighten = Annotated[
    list[Path] | None,
    typer.Option(
        "--tighten",
        metavar="RECIPE",
        rich_help_panel=LOAD,
        help="While memory is short, new requests without a recipe have this one; repeat, mildest first.",
    ),
]
TightenLimit = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", rich_help_panel=LOAD, help="How many of these may be used. Default: all."),
]
TightenBelow = Annotated[
    float | None,
    typer.Option(metavar="SHARE", rich_help_panel=LOAD, help="Memory is short where less of it is free. Default: 0.1."),
]
TightenWait = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", rich_help_panel=LOAD, help="It is short also where a request waits longer. Default: never."
    ),
]

GIGABYTE = 10**9
ConversationDisk = Annotated[
    int,
    typer.Option(
        "--conversation-disk",
        metavar="SIZE",
        parser=parse_room,
        show_default="1GB",
        rich_help_panel=CONVERSATIONS,
        help="Disk for prompts that cache techniques compress, to go on from; 0: none.",
    ),
]
SessionBytes = Annotated[
    int,
    typer.Option(
        "--session-bytes",
        metavar="SIZE",
        parser=parse_bytes,
        show_default="1GB",
        rich_help_panel=CONVERSATIONS,
        help="Memory and disk together for sessions of conversations.",
    ),
]
SessionFolder = Annotated[
    Path | None,
    typer.Option(
        "--session-folder",
        file_okay=False,
        rich_help_panel=CONVERSATIONS,
        help="Where clients may save their sessions. Default: nowhere.",
    ),
]
Cluster = Annotated[
    bool,
    typer.Option("--cluster", rich_help_panel=CLUSTER, help="Serve by several replicas behind one address, on Ray."),
]
Replicas = Annotated[
    int | None,
    typer.Option("--replicas", min=1, rich_help_panel=CLUSTER, help="Replicas; --threads are of each. Default: 2."),
]
MaxReplicas = Annotated[
    int | None,
    typer.Option("--max-replicas", min=1, rich_help_panel=CLUSTER, help="As many as the load may bring."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        rich_help_panel=CLUSTER,
        help="HOST:PORT of a Ray cluster, or auto. Default: one on this machine.",
    ),
]


def technique_names(given: Iterable[str] | None) -> tuple[str, ...] | None:
    """Those of --request-technique, None where it was not given. Raises typer.BadParameter with the nearest name."""
    if not given:
        return None
    from thrifty import registry
    from thrifty.errors import nearest

    known = {name for stage in ("prompt", "cache", "decoding") for name in registry.names(stage)}
    for name in given:
        if name not in known:
            raise typer.BadParameter(f"--request-technique {name!r} is no technique. {nearest(name, known)}")
    return tuple(given)
