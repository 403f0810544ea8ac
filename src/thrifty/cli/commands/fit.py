"""`thrifty fit`: what fits the budget, what it costs, and a recipe to serve with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from thrifty.cli.shared import fit_options, fit_search, opening, options, output
from thrifty.errors import BudgetError, StorageError, ThriftyError

if TYPE_CHECKING:
    from thrifty.frontier.fit import Fit

EXAMPLE = "thrifty fit smollm2-135m --memory 150MB --context 4096 -o recipe.toml --report report.html"
PROMPT = "Explain in two sentences why the sky is blue."
MINUTES = 10.0


def command(
    model: options.ModelName,
    context: fit_options.Context,
    memory: fit_options.Memory = None,
    process_memory: fit_options.ProcessMemory = None,
    out: fit_options.Output = Path("recipe.toml"),
    latency: fit_options.Latency = None,
    batch: fit_options.Batch = 1,
    min_recovery: fit_options.MinRecovery = None,
    minutes: fit_options.Minutes = MINUTES,
    tasks: fit_options.Tasks = None,
    items: fit_options.Items = None,
    seed: fit_options.Seed = 0,
    state: fit_options.State = None,
    fresh: fit_options.Fresh = False,
    recipe: fit_options.Recipes = None,
    off_grid: fit_options.OffGrid = False,
    prompt: fit_options.Prompt = PROMPT,
    report: fit_options.Report = None,
    prefix: fit_options.Prefix = None,
    scored: fit_options.Scored = None,
    threads: options.Threads = None,
    native: options.Native = None,
    no_copy: options.NoCopy = False,
    as_json: options.Json = False,
) -> None:
    """Search recipes under a budget, write the best one, and answer with it.

    All are predicted; what cannot fit never runs. The rest is halved on its divergence from the uncompressed model of
    the same run, then on a few questions of every task, and the last two are measured on all of them. The winner has
    the highest recovery within the bounds. Of a model too slow for all of that in the time, recipes are left out to
    which there is a gentler one that fits, then texts are shorter and questions fewer. How long it takes is said first.
    Ctrl-C ends the search and keeps the best so far; the same command goes on where it was stopped or killed.
    """
    if memory is None and process_memory is None:
        raise typer.BadParameter("a budget is missing: give it, such as --memory 150MB.", param_hint="--memory")
    own = [opening.read_recipe(path) for path in recipe or []]
    for path, flag, example in ((out, "--output", "recipe.toml"), (report, "--report", "report.html")):
        if path is not None:
            _check_writable(path, flag, example)
    asked = {
        "memory": fit_search.budget(model, memory, process_memory, not no_copy),
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
    fit = fit_search.prepare(model, asked, own, state, fresh, not no_copy)
    with fit.state:
        ended = fit_search.watch(fit, as_json)
    again = fit_search.reproduced(model, asked, out, not no_copy)
    _finish(fit, model, again, out, report, prompt, ended, as_json)


def _finish(
    fit: Fit,
    model: str,
    again: str,
    out: Path,
    report: Path | None,
    prompt: str,
    ended: fit_search.Ended,
    as_json: bool,
) -> None:
    """Write, explain, answer. Exits with 130 after an interrupt, 1 where nothing was chosen or something could not be
    written: the result is told all the same.
    """
    from thrifty.frontier.explain import why_nothing
    from thrifty.frontier.result import document

    best = fit.best
    problems: list[ThriftyError | None] = [StorageError(ended.failure) if ended.failure else None]
    if best is None:
        problems.append(BudgetError(f"{why_nothing(fit)}. Nothing was written."))
    else:
        problems.append(_kept(best.candidate.recipe.save, out))
        if not as_json and problems[-1] is None:
            fit_search.announce(fit, out)
    told: dict[str, Any] = {"interrupted": ended.interrupted}
    if best is not None and ended.whole and (prompt or as_json or report is not None):
        told |= fit_search.shown(fit, best, prompt, quiet=as_json, whole=as_json or report is not None)
    result = document(fit, model, again, **told) if as_json or report else {}
    if report is not None:
        problems.append(_kept(partial(_write_report, document=result, quiet=as_json), report))
    raised = [problem for problem in problems if problem is not None]
    message = " ".join(map(str, raised))
    if as_json:
        answers = result["answers"]
        answer = answers[0]["winner"] if answers else ""
        written = str(out) if best is not None and problems[1] is None else None
        error = {"error": message, "kind": type(raised[-1]).__name__} if raised else {}
        output.json_line(result | {"recipe_file": written, "answer": answer} | error)
    elif raised:
        output.error(message)
    if raised or not ended.whole:
        raise typer.Exit(130 if ended.interrupted else 1)


def _kept(write: Callable[[Path], None], path: Path) -> ThriftyError | None:
    """Write something that a long search made; what it raises is told beside the result instead of in its place."""
    try:
        write(path)
    except ThriftyError as error:
        return error
    return None


def _write_report(path: Path, document: dict[str, Any], quiet: bool) -> None:
    from thrifty.files import replace_file
    from thrifty.frontier.report.report import render
    from thrifty.models.store.cache_directory import storage_errors

    with storage_errors(path.resolve().parent):
        replace_file(path.resolve(), render(document))
    if not quiet:
        output.say(f"report: {path.resolve()}")


def _check_writable(path: Path, flag: str, example: str) -> None:
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {folder}"
        raise typer.BadParameter(f"{path} {what}. Name a file, such as {example}.", param_hint=flag)
