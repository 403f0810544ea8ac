"""Options of `thrifty bench-serve`, by the panels of its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LOAD, LENGTHS, REPORT = "Load", "Prompts and answers", "Report"

Url = Annotated[str, typer.Argument(metavar="URL", show_default=False, help="The server, e.g. http://host:8000.")]
Model = Annotated[str, typer.Option("--model", "-m", help="The model's name, as the server knows it.")]
Rate = Annotated[float, typer.Option(rich_help_panel=LOAD, help="Requests a second (open loop); inf: all at once.")]
Burstiness = Annotated[
    float, typer.Option(rich_help_panel=LOAD, help="1: Poisson; less: in bursts; inf: at equal distances.")
]
Concurrency = Annotated[
    int | None,
    typer.Option(min=1, rich_help_panel=LOAD, help="Most requests at a time; without --rate a closed loop."),
]
Requests = Annotated[int, typer.Option(min=1, rich_help_panel=LOAD, help="How many, in each run.")]
Sweep = Annotated[
    str | None,
    typer.Option(
        metavar="RATES", rich_help_panel=LOAD, help="A run at each rate, e.g. 0.5,1,2; auto: around the capacity."
    ),
]
InputLen = Annotated[str, typer.Option(rich_help_panel=LENGTHS, help="Tokens: 1024, or 512-1536.")]
OutputLen = Annotated[str, typer.Option(rich_help_panel=LENGTHS, help="Tokens: 128, or 64-256.")]
Lengths = Annotated[
    Path | None,
    typer.Option(rich_help_panel=LENGTHS, metavar="FILE", help="Both instead: a line a request, such as 812 96."),
]
PrefixLen = Annotated[
    int, typer.Option(min=0, rich_help_panel=LENGTHS, help="Tokens at the beginning that prompts share.")
]
Prefixes = Annotated[int, typer.Option(min=1, rich_help_panel=LENGTHS, help="How many such beginnings there are.")]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", rich_help_panel=LENGTHS, help="Ask for answers of their whole length.")
]
Seed = Annotated[int, typer.Option(rich_help_panel=LENGTHS, help="Another number: other prompts and times.")]
Kind = Annotated[str, typer.Option(help="chat or completions.")]
ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Shown to the server.")]
Timeout = Annotated[float, typer.Option(help="Seconds in which an answer must have come whole.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Of sampling; 0: greedy.")]
ExtraBody = Annotated[
    str | None, typer.Option(metavar="JSON", help="More fields of each request, e.g. '{\"top_p\": 0.9}'.")
]
Goodput = Annotated[
    list[str] | None,
    typer.Option(rich_help_panel=REPORT, help="Objectives in ms, of ttft, tpot, e2el: ttft:2000,tpot:60."),
]
Percentiles = Annotated[str, typer.Option(rich_help_panel=REPORT, help="Of every time.")]
Save = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", rich_help_panel=REPORT, help="All figures, as JSON."),
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", rich_help_panel=REPORT, help="A drawing of them, as SVG.")]
