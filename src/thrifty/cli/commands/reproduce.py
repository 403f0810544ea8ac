"""`thrifty reproduce`: check what papers claim, on this machine."""

from __future__ import annotations

import functools
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli.shared import opening, options, output
from thrifty.cli.shared.layout import Column
from thrifty.cli.shared.ticker import Ticker, seconds

if TYPE_CHECKING:
    from thrifty.claims.harness.budget import Budget
    from thrifty.claims.harness.records import ClaimRow
    from thrifty.claims.harness.running import Reproduction
    from thrifty.claims.harness.state import State

EXAMPLE = "thrifty reproduce kivi"


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", show_default=False, help="The techniques whose claims are checked."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Check every claim.")] = False,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", metavar="FILE", help="Check the techniques that a recipe uses.")
    ] = None,
    minutes: Annotated[
        str | None,
        typer.Option(
            metavar="MINUTES",
            show_default="the smallest counts, no bound",
            help="20, 120, another number or 'overnight': sets items and models; no claim begins that would end later.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", show_default="each claim's own", help="A model to measure with. Repeatable."),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, show_default="0", help="Of the items. Repeatable: opposite verdicts are an error."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Add the results to this page, and to the .json beside it."
        ),
    ] = None,
    threads: options.Threads = None,
    native: options.Native = None,
    as_json: options.Json = False,
) -> None:
    """Measure a paper's claim and say whether it holds here: what the paper says, the headline with its interval, and
    the verdict.

    The plan and its time are told first. Items that were measured are kept as they come, so that a run that Ctrl-C
    ended goes on where it was. With --output, results are added to a page, one row a technique and model; without it no
    page is written. Without NAME, --recipe and --all, list the claims, or write --output again from its record.
    """
    if not names and not everything and recipe is None:
        _rewrite(out) if out is not None else _list(as_json)
        return
    if sum((bool(names), everything, recipe is not None)) > 1:
        raise typer.BadParameter("use one of technique names, --recipe and --all, not both.", param_hint="NAME")
    from thrifty.claims.harness import budget

    wanted = _of_recipe(recipe) if recipe is not None else _wanted(names or [])
    chosen = budget.parse(minutes)
    if out is not None:
        _check(out)
    states: list[State] = []
    with ExitStack() as opened:
        seeds = tuple(dict.fromkeys(seed or [0]))
        run = _prepared(wanted, chosen, model or (), seeds, out, threads, native, opened, states)
        rows, interrupted = _run(run, opened, as_json, states)
    if as_json:
        output.json_line(_document(rows, run, out, interrupted))
    else:
        _close(rows, run, out)
    if interrupted:
        raise typer.Exit(130)
    if run.failed:
        raise typer.Exit(1)


def _wanted(names: list[str]) -> list[str]:
    """The named claims, each once; all where none is named."""
    from thrifty import claims
    from thrifty.claims.harness.running import unclaimed
    from thrifty.errors import RecipeError

    without = unclaimed()
    for name in names:
        if name in without:
            raise RecipeError(f"technique '{name}' has no claim yet. Claims: {', '.join(claims.names())}")
        claims.load(name)
    return list(dict.fromkeys(names)) or claims.names()


def _of_recipe(path: Path) -> list[str]:
    """The recipe's techniques that have a claim; those without are named."""
    from thrifty import claims, registry

    chosen = opening.read_recipe(path)
    used = dict.fromkeys(table["technique"] for stage in registry.STAGES for table in getattr(chosen, stage))
    known = claims.names()
    without = [name for name in used if name not in known]
    if without:
        output.warn(f"no claim yet: {', '.join(without)}")
    return [name for name in used if name in known]


def _prepared(
    wanted: list[str],
    budget: Budget,
    models: list[str] | tuple[()],
    seeds: tuple[int, ...],
    out: Path | None,
    threads: int | None,
    native: bool | None,
    opened: ExitStack,
    states: list[State],
) -> Reproduction:
    """The run, whose models are opened when they are first asked for and closed with `opened`. Their states are added
    to `states`.
    """
    from thrifty.api import open_model
    from thrifty.claims.harness import state, versions
    from thrifty.claims.harness.context import Context
    from thrifty.claims.harness.running import Reproduction
    from thrifty.evaluation.roofline.machine import cores

    @functools.cache
    def context(name: str) -> Context:
        with output.waiting(f"loading {name}"):
            loaded = open_model(name, threads=threads)
        engine = {"threads": threads or cores(), "native": native}
        kept = opened.enter_context(state.state_of(versions.source(), loaded.version, engine))
        states.append(kept)
        if len(kept):
            output.note(f"{name}: going on from {len(kept)} results of an earlier run of the same code")
        made = Context(loaded, name, budget=budget, state=kept, threads=threads, native=native, say=output.note)
        return opened.enter_context(made)

    return Reproduction(context, wanted, out, models, budget, seeds)


def _run(run: Reproduction, opened: ExitStack, quiet: bool, states: list[State]) -> tuple[list[ClaimRow], bool]:
    """Run the claims; True where Ctrl-C ended it. states: count what was measured."""
    from thrifty.claims.harness import plan

    rows: list[ClaimRow] = []
    steps = run.steps
    output.note(plan.told(steps, run.budget, len(run.seeds)))
    if not sys.stderr.isatty():

        def progress(elapsed: float) -> str:
            results = sum(state.added for state in states)
            return f"{len(rows)} of {len(steps)} claims, {results} results measured in {seconds(elapsed)}"

        opened.enter_context(Ticker(progress, output.note))
    try:
        for row in run.rows():
            rows.append(row)
            if not quiet:
                _show(row)
    except KeyboardInterrupt:
        output.note("stopped: what was measured is kept; the same command goes on from there")
        return rows, True
    return rows, False


def _check(path: Path) -> None:
    from thrifty.claims.harness import records

    if path.is_dir() or path.suffix == ".json":
        raise typer.BadParameter(f"{path} cannot be the page. Name a file, such as docs/claims.md.", param_hint="-o")
    records.read(records.record_of(path))


def _rewrite(out: Path) -> None:
    """Write a page again from its record."""
    from thrifty.claims.harness import page, records
    from thrifty.claims.harness.running import older, unclaimed

    _check(out)
    rows = records.read(records.record_of(out))
    if not rows:
        raise typer.BadParameter(
            f"{records.record_of(out)} has no results; name a claim or use --all.", param_hint="-o"
        )
    page.write(rows, out, unclaimed(), older(rows))
    output.say(f"Written to {out} from its record.")


def _show(row: ClaimRow) -> None:
    measured, run = row.measurement, row.run
    assert measured is not None and run is not None, "a row that was measured"
    cells = [("paper says", f"{row.paper} ({row.source})"), ("headline", measured.headline.told())]
    cells += [("needed", part.told()) for part in measured.gates]
    cells += [("also", part.told()) for part in measured.parts]
    cells += [("control", control.told()) for control in measured.controls]
    cells += [("setting", measured.setting), ("verdict", f"{row.verdict} (rule: {row.rule})")]
    output.card(f"{row.technique} on {row.model}, {run.minutes:.1f} minutes", cells)


def _close(rows: list[ClaimRow], run: Reproduction, out: Path | None) -> None:
    for name, reason in run.failed.items():
        output.error(f"{name} could not be measured: {reason}")
    if run.left_out:
        output.warn(f"no time was left for {', '.join(run.left_out)}; run them with more --minutes")
    if rows:
        verdicts = ", ".join(f"{row.technique} on {row.model}: {row.verdict}" for row in rows)
        written = "Nothing was written; -o FILE adds it to a page" if out is None else f"Written to {out}"
        output.say(f"{verdicts}. {written}.")


def _document(rows: list[ClaimRow], run: Reproduction, out: Path | None, interrupted: bool) -> dict[str, Any]:
    return {
        "claims": [row.as_dict() for row in rows],
        "left_out": run.left_out,
        "failed": run.failed,
        "page": None if out is None else str(out),
        "interrupted": interrupted,
    }


def _list(as_json: bool) -> None:
    from thrifty import claims
    from thrifty.claims.harness.running import unclaimed

    known = {name: claims.load(name) for name in claims.names()}
    if as_json:
        document = [
            {"name": name, "paper": claim.paper, "minutes": claim.minutes, "models": list(claim.models)}
            for name, claim in known.items()
        ]
        output.json_line({"claims": document, "no_claim_yet": list(unclaimed())})
        return
    rows = [(name, claim.paper, f"{claim.minutes:g}") for name, claim in known.items()]
    rows += [(name, "no claim yet", "-") for name in unclaimed()]
    columns = (
        Column("technique", number=False),
        Column("the paper says", number=False, rank=2),
        Column("minutes", rank=1),
    )
    output.table("", columns, rows)
