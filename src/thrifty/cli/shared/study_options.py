"""The arguments and options of `thrifty study`, by what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StudyName = Annotated[
    str | None, typer.Argument(metavar="STUDY", show_default=False, help="Which study; without it all are listed.")
]
ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A name from `thrifty models`, a GGUF file, a model folder or a hub id.",
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(min=0.0, show_default="no bound", help="It ends by then; so many items are asked as fit into it."),
]
Items = Annotated[int, typer.Option(min=2, help="Items of every task, at most.")]
Length = Annotated[int, typer.Option(min=16, help="Tokens of context that are compressed before a question.")]
Tasks = Annotated[
    str | None,
    typer.Option(metavar="NAME,NAME,...", show_default="the study's own", help="Tasks, with options as in eval."),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="NAME,NAME,...", show_default="all", help="These formats of weights of the study alone."),
]
Methods = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME,...",
        show_default="the study's own formats",
        help="Techniques in the place of the study's formats of weights, at every width; all: those with widths.",
    ),
]
Bits = Annotated[
    str | None, typer.Option(metavar="N,N,...", show_default="all", help="Widths of --methods, such as 3,4,8.")
]
Repair = Annotated[
    int, typer.Option(min=0, help="With --methods: steps of LoRA for one more row behind each (needs torch).")
]
Models = Annotated[
    str | None,
    typer.Option(metavar="NAME,NAME,...", show_default="none", help="More models, in turn; they share --minutes."),
]
Cache = Annotated[
    str | None,
    typer.Option(metavar="NAME,NAME,...", show_default="all", help="These formats of the cache alone."),
]
OwnRecipe = Annotated[
    Path | None, typer.Option("--recipe", "-r", metavar="FILE", help="A recipe of yours as one more cell.")
]
Batches = Annotated[
    str,
    typer.Option(metavar="N,N,...", help="Sequences that decode together, for the served rates; empty for none."),
]
Seed = Annotated[int, typer.Option(min=0, help="Another seed makes other items.")]
State = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        show_default="in the cache directory",
        help="Where answers are kept: a run that was stopped or killed goes on from it.",
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget what the state holds.")]
Report = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a page with the table and a plot of score over bytes.")
]
