"""`thrifty fit`: what fits the budget, what it costs, and a recipe to serve with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli import fit_search, opening, options, output
from thrifty.cli.quantities import parse_bytes, parse_seconds

if TYPE_CHECKING:
    from thrifty.frontier.fit import Fit

EXAMPLE = "thrifty fit smollm2-135m --memory 150MB --context 4096 -o recipe.toml --report report.html"
PROMPT = "Explain in two sentences why the sky is blue."
MINUTES = 4.0

BOUNDS, SEARCH = "Bounds", "Search"


def command(
    model: options.ModelName,
    memory: Annotated[
        int,
        typer.Option(
            "--memory",
            metavar="SIZE",
            parser=parse_bytes,
            show_default=False,
            help="The budget for weights + cache peak + workspace, e.g. 150MB.",
        ),
    ],
    context: Annotated[
        int, typer.Option(min=2, show_default=False, help="Tokens that must fit, prompt and answer together.")
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where the best recipe goes.")] = Path(
        "recipe.toml"
    ),
    latency: Annotated[
        float | None,
        typer.Option(
            metavar="TIME", parser=parse_seconds, rich_help_panel=BOUNDS, help="Longest decode step, e.g. 8ms."
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, rich_help_panel=BOUNDS, help="Sequences of that context at the same time.")
    ] = 1,
    min_recovery: Annotated[
        float | None,
        typer.Option(rich_help_panel=BOUNDS, help="What must be left of the uncompressed model's scores, e.g. 0.98."),
    ] = None,
    minutes: Annotated[
        float, typer.Option(rich_help_panel=SEARCH, help="The search ends by then and keeps the best it found.")
    ] = MINUTES,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            rich_help_panel=SEARCH,
            show_default="recall,choice",
            help="Tasks that recovery is measured on, beside next-token accuracy; empty for none.",
        ),
    ] = None,
    items: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=SEARCH, show_default="12", help="Questions of every task."),
    ] = None,
    seed: Annotated[
        int, typer.Option(rich_help_panel=SEARCH, help="Which questions, and who wins between equals.")
    ] = 0,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=SEARCH,
            show_default="in the cache directory",
            help="Where measurements are kept: a search that was killed goes on from it.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", rich_help_panel=SEARCH, help="Forget earlier measurements of this question.")
    ] = False,
    recipe: Annotated[
        list[Path] | None,
        typer.Option("--recipe", "-r", metavar="FILE", help="A recipe of yours to measure too; repeat for several."),
    ] = None,
    off_grid: Annotated[
        bool,
        typer.Option(
            "--off-grid",
            rich_help_panel=SEARCH,
            help="Also measure what rounding weights costs where the checkpoint is not rounded already.",
        ),
    ] = False,
    prompt: Annotated[str, typer.Option(help="What the winner answers at the end; empty for no answer.")] = PROMPT,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all of it as one HTML page that works offline.")
    ] = None,
    prefix: Annotated[
        int | None,
        typer.Option(
            min=1, show_default="fills the context, at most 4096", help="Tokens that are compressed before scoring."
        ),
    ] = None,
    scored: Annotated[int | None, typer.Option(min=1, show_default="256", help="Tokens that are scored.")] = None,
    threads: options.Threads = None,
    native: options.Native = None,
    as_json: options.Json = False,
) -> None:
    """Search recipes under a budget, write the best one, and answer with it.

    All are predicted; what cannot fit never runs. The rest is halved on its divergence from the uncompressed model of
    the same run, then on a few questions of every task, and the last two are measured on all of them. The winner has
    the highest recovery within the bounds.
    Ctrl-C ends the search and keeps the best so far; the same command goes on where it was stopped or killed.
    """
    own = [opening.read_recipe(path) for path in recipe or []]
    for path, flag, example in ((out, "--output", "recipe.toml"), (report, "--report", "report.html")):
        if path is not None:
            _check_writable(path, flag, example)
    asked = {
        "memory": memory,
        "context": context,
        "prefix": prefix,
        "scored": scored,
        "threads": threads,
        "native": native,
        "batch": batch,
        "latency": latency,
        "min_recovery": min_recovery,
        "minutes": minutes,
        "tasks": None if tasks is None else tuple(name.strip() for name in tasks.split(",") if name.strip()),
        "items": items,
        "seed": seed,
        "off_grid": off_grid,
    }
    fit = fit_search.prepare(model, asked, own, state, fresh)
    with fit.state:
        ended = fit_search.watch(fit, as_json)
    _finish(fit, model, asked, out, report, prompt, ended, as_json)


def _finish(
    fit: Fit,
    model: str,
    asked: dict[str, Any],
    out: Path,
    report: Path | None,
    prompt: str,
    ended: fit_search.Ended,
    as_json: bool,
) -> None:
    """Write, explain, answer. Exits with 130 after an interrupt, 1 where nothing was chosen or the state failed."""
    from thrifty.frontier.document import document

    best = fit.best
    if best is not None:
        best.candidate.recipe.save(out)
        if not as_json:
            fit_search.announce(fit, out)
    told: dict[str, Any] = {"interrupted": ended.interrupted}
    if best is not None and ended.whole and (prompt or as_json or report is not None):
        told |= fit_search.shown(fit, model, best, prompt, quiet=as_json, whole=as_json or report is not None)
    found = document(fit, model, fit_search.reproduced(model, asked, out), **told) if as_json or report else {}
    if report is not None:
        _write_report(report, found, as_json)
    if as_json:
        answers = found["answers"]
        answer = answers[0]["winner"] if answers else ""
        written = str(out) if best is not None else None
        more = {"recipe_file": written, "answer": answer}
        output.json_line(found | more)
    if best is None:
        from thrifty.frontier.explain import why_nothing

        output.error(f"{why_nothing(fit)}. Nothing was written.")
    if not ended.whole or best is None:
        raise typer.Exit(130 if ended.interrupted else 1)


def _write_report(path: Path, found: dict[str, Any], quiet: bool) -> None:
    from thrifty.frontier.report import render
    from thrifty.models.cache_directory import storage_errors, write_text

    with storage_errors(path.resolve().parent):
        write_text(path.resolve(), render(found))
    if not quiet:
        output.console().print(f"report: {path.resolve()}", highlight=False, markup=False, soft_wrap=True)


def _check_writable(path: Path, flag: str, example: str) -> None:
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {folder}"
        raise typer.BadParameter(f"{path} {what}. Name a file, such as {example}.", param_hint=flag)
