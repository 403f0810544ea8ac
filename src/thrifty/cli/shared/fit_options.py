"""The options of `thrifty fit`, by what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.shared.quantities import parse_bytes, parse_seconds

BOUNDS, SEARCH = "Bounds", "Search"

Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        parser=parse_bytes,
        show_default=False,
        help="The budget for weights + cache peak + workspace, e.g. 150MB. This or --process-memory must be given.",
    ),
]
ProcessMemory = Annotated[
    int | None,
    typer.Option(
        "--process-memory",
        metavar="SIZE",
        parser=parse_bytes,
        show_default=False,
        help="The budget for the whole process that will serve, Python included, as the system counts it, e.g. 300MB.",
    ),
]
Context = Annotated[
    int, typer.Option(min=2, show_default=False, help="Tokens that must fit, prompt and answer together.")
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where the best recipe goes.")]
Latency = Annotated[
    float | None,
    typer.Option(metavar="TIME", parser=parse_seconds, rich_help_panel=BOUNDS, help="Longest decode step, e.g. 8ms."),
]
Batch = Annotated[int, typer.Option(min=1, rich_help_panel=BOUNDS, help="Sequences of that context at the same time.")]
MinRecovery = Annotated[
    float | None,
    typer.Option(rich_help_panel=BOUNDS, help="What must be left of the uncompressed model's scores, e.g. 0.98."),
]
Minutes = Annotated[
    float,
    typer.Option(
        rich_help_panel=SEARCH,
        help="The search ends by then, loading aside, with the best it found; it is planned for less.",
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME,...",
        rich_help_panel=SEARCH,
        show_default="recall,choice",
        help="Tasks that recovery is measured on, beside next-token accuracy; empty for none.",
    ),
]
Items = Annotated[
    int | None,
    typer.Option(
        min=1, rich_help_panel=SEARCH, show_default="12, fewer of a slow model", help="Questions of every task."
    ),
]
Seed = Annotated[int, typer.Option(rich_help_panel=SEARCH, help="Which questions, and who wins between equals.")]
State = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=SEARCH,
        show_default="in the cache directory",
        help="Where measurements are kept: a search that was killed goes on from it.",
    ),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", rich_help_panel=SEARCH, help="Forget earlier measurements of this question.")
]
Recipes = Annotated[
    list[Path] | None,
    typer.Option("--recipe", "-r", metavar="FILE", help="A recipe of yours to measure too; repeat for several."),
]
OffGrid = Annotated[
    bool,
    typer.Option(
        "--off-grid",
        rich_help_panel=SEARCH,
        help="Also measure what rounding weights costs where the checkpoint is not rounded already.",
    ),
]
Prompt = Annotated[str, typer.Option(help="What the winner answers at the end; empty for no answer.")]
Report = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write all of it as one HTML page that works offline.")
]
Prefix = Annotated[
    int | None,
    typer.Option(
        min=1, show_default="fills the context, from 1024 to 4096", help="Tokens that are compressed before scoring."
    ),
]
Scored = Annotated[
    int | None, typer.Option(min=1, show_default="256, fewer of a slow model", help="Tokens that are scored.")
]
