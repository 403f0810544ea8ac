"""`thrifty bench-serve`: load on any OpenAI-compatible server, and how well it keeps up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from thrifty.cli.shared import load_test, options, output

EXAMPLE = "thrifty bench-serve http://127.0.0.1:8000 --model smollm2-135m --rate 2 --goodput ttft:2000,tpot:60"
LOAD, LENGTHS, REPORT = "Load", "Prompts and answers", "Report"


def command(
    url: Annotated[str, typer.Argument(metavar="URL", show_default=False, help="The server, e.g. http://host:8000.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model's name, as the server knows it.")],
    rate: Annotated[
        float, typer.Option(rich_help_panel=LOAD, help="Requests a second (open loop); inf: all at once.")
    ] = float("inf"),
    burstiness: Annotated[
        float, typer.Option(rich_help_panel=LOAD, help="1: Poisson; less: in bursts; inf: at equal distances.")
    ] = 1.0,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=LOAD, help="Most requests at a time; without --rate a closed loop."),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, rich_help_panel=LOAD, help="How many, in each run.")] = 64,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="RATES", rich_help_panel=LOAD, help="A run at each rate, e.g. 0.5,1,2; auto: around the capacity."
        ),
    ] = None,
    input_len: Annotated[str, typer.Option(rich_help_panel=LENGTHS, help="Tokens: 1024, or 512-1536.")] = "1024",
    output_len: Annotated[str, typer.Option(rich_help_panel=LENGTHS, help="Tokens: 128, or 64-256.")] = "128",
    lengths: Annotated[
        Path | None,
        typer.Option(rich_help_panel=LENGTHS, metavar="FILE", help="Both instead: a line a request, such as 812 96."),
    ] = None,
    prefix_len: Annotated[
        int, typer.Option(min=0, rich_help_panel=LENGTHS, help="Tokens at the beginning that prompts share.")
    ] = 0,
    prefixes: Annotated[
        int, typer.Option(min=1, rich_help_panel=LENGTHS, help="How many such beginnings there are.")
    ] = 1,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", rich_help_panel=LENGTHS, help="Ask for answers of their whole length.")
    ] = False,
    seed: Annotated[int, typer.Option(rich_help_panel=LENGTHS, help="Another number: other prompts and times.")] = 0,
    endpoint: Annotated[str, typer.Option(help="chat or completions.")] = "chat",
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Shown to the server.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds in which an answer must have come whole.")] = 3600.0,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampling; 0: greedy.")] = 0.0,
    extra_body: Annotated[
        str | None, typer.Option(metavar="JSON", help="More fields of each request, e.g. '{\"top_p\": 0.9}'.")
    ] = None,
    recipe: options.RecipePath = None,
    goodput: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=REPORT, help="Objectives in ms, of ttft, tpot, e2el: ttft:2000,tpot:60."),
    ] = None,
    percentiles: Annotated[str, typer.Option(rich_help_panel=REPORT, help="Of every time.")] = "50,90,95,99",
    save: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", rich_help_panel=REPORT, help="All figures, as JSON."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=REPORT, help="A drawing of them, as SVG.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Put load on an OpenAI-compatible server and measure how it keeps up: TTFT, TPOT, ITL, goodput.

    Prompts are common words; two short requests tell how many tokens they are. A recipe's cache techniques go with
    each request, to a server that is Thrifty's. The names in the JSON are those of vLLM's benchmark. Ctrl-C ends the
    load and reports what was measured.
    """
    setup = load_test.Setup.of(
        url=url, model=model, endpoint=endpoint, key=api_key, temperature=temperature, ignore_eos=ignore_eos,
        timeout=timeout, extra=_extra(extra_body, recipe), rate=rate, burstiness=burstiness, concurrency=concurrency,
        requests=requests, sweep=sweep, input_len=input_len, output_len=output_len, lengths=lengths,
        prefix_len=prefix_len, prefixes=prefixes, seed=seed, goodput=goodput or [], percentiles=percentiles,
    )  # fmt: skip
    document, cancelled = load_test.run(setup)
    _write(document, setup.objectives, save, plot)
    summary = {name: value for name, value in document.items() if name not in load_test.DETAILS}
    if as_json:
        output.json_line(summary)
    else:
        load_test.show(document)
        output.json_line(summary)
    if cancelled:
        raise typer.Exit(130)


def _extra(text: str | None, recipe: Path | None) -> dict[str, Any]:
    """Further fields of each body."""
    extra: dict[str, Any] = {}
    if recipe is not None:
        from thrifty.recipe import Recipe

        extra["thrifty"] = {"cache": Recipe.load(recipe).cache}
    if text is not None:
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise typer.BadParameter(f"{text!r} is no JSON: {error}", param_hint="--extra-body") from error
        if not isinstance(fields, dict):
            raise typer.BadParameter(f"{text!r} is no JSON object", param_hint="--extra-body")
        extra |= fields
    return extra


def _write(document: dict[str, Any], objectives: dict[str, float], save: Path | None, plot: Path | None) -> None:
    from thrifty.loadtest.plot import run_plot, sweep_plot

    if save is not None:
        save.write_text(json.dumps(document) + "\n", encoding="utf-8")
    if plot is not None:
        runs = [run for run in document.get("runs", ()) if run["request_rate"] != "inf"]
        drawing = sweep_plot(runs, objectives) if "runs" in document else run_plot(document, objectives)
        plot.write_text(drawing, encoding="utf-8")
