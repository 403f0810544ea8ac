"""`thrifty bench-serve`: load on any OpenAI-compatible server, and how well it keeps up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from thrifty.cli.shared import load_options, load_test, options, output

EXAMPLE = "thrifty bench-serve http://127.0.0.1:8000 --model smollm2-135m --rate 2 --goodput ttft:2000,tpot:60"


def command(
    url: load_options.Url,
    model: load_options.Model,
    rate: load_options.Rate = float("inf"),
    burstiness: load_options.Burstiness = 1.0,
    concurrency: load_options.Concurrency = None,
    requests: load_options.Requests = 64,
    sweep: load_options.Sweep = None,
    input_len: load_options.InputLen = "1024",
    output_len: load_options.OutputLen = "128",
    lengths: load_options.Lengths = None,
    prefix_len: load_options.PrefixLen = 0,
    prefixes: load_options.Prefixes = 1,
    ignore_eos: load_options.IgnoreEos = False,
    seed: load_options.Seed = 0,
    endpoint: load_options.Kind = "chat",
    api_key: load_options.ApiKey = None,
    timeout: load_options.Timeout = 3600.0,
    temperature: load_options.Temperature = 0.0,
    extra_body: load_options.ExtraBody = None,
    recipe: options.RecipePath = None,
    goodput: load_options.Goodput = None,
    percentiles: load_options.Percentiles = "50,90,95,99",
    save: load_options.Save = None,
    plot: load_options.Plot = None,
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
    _tell(document, as_json)
    if cancelled:
        raise typer.Exit(130)


def _tell(document: dict[str, Any], as_json: bool) -> None:
    """A table for people, unless it is not wanted, and one line of JSON."""
    if not as_json:
        load_test.show(document)
    output.json_line({name: value for name, value in document.items() if name not in load_test.DETAILS})


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
