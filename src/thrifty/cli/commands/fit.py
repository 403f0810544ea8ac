"""`thrifty fit`: what fits the budget, what it costs, and a recipe to serve with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli import opening, options, output
from thrifty.cli.frontier_table import Watcher
from thrifty.cli.quantities import parse_bytes

if TYPE_CHECKING:
    from thrifty.frontier.fit import Fit
    from thrifty.frontier.measurement import Measurement

EXAMPLE = "thrifty fit smollm2-135m --memory 150MB --context 4096 -o recipe.toml"
PROMPT = "Explain in two sentences why the sky is blue."


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
    recipe: Annotated[
        list[Path] | None,
        typer.Option("--recipe", "-r", metavar="FILE", help="A recipe of yours to measure too; repeat for several."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What the winner answers at the end; empty for no answer.")] = PROMPT,
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
    """Measure recipes under a memory budget, write the best one, and answer with it.

    Every recipe runs against the uncompressed model of the same run. The winner has the least divergence
    among those that fit at --context. Ctrl-C ends the search and keeps the best so far.
    """
    own = [opening.read_recipe(path) for path in recipe or []]
    _check_writable(out)
    fit = _prepare(model, memory, context, own, prefix, scored, threads, native)
    interrupted = _watch(fit, as_json)
    best = fit.best
    if best is None:
        _say_why_nothing(fit)
        raise typer.Exit(130 if interrupted else 1)
    best.candidate.recipe.save(out)
    if not as_json:
        _announce(best, out, memory)
    answer = (
        "" if interrupted or not prompt else _answer(model, best, memory, context, prompt, threads, native, as_json)
    )
    if as_json:
        output.json_line(_document(model, fit, best, out, answer, interrupted))
    if interrupted:
        raise typer.Exit(130)


def _prepare(
    model: str,
    memory: int,
    context: int,
    own: list[Any],
    prefix: int | None,
    scored: int | None,
    threads: int | None,
    native: bool | None,
) -> Fit:
    from thrifty.evaluation import quality
    from thrifty.frontier.candidates import of_recipe
    from thrifty.frontier.fit import Fit, Question
    from thrifty.models.loading import load

    with output.waiting(f"loading {model}"):
        loaded = load(model, threads=threads, native=native)
        question = Question(
            loaded,
            memory,
            context,
            prefix=prefix,
            scored=quality.SCORED if scored is None else scored,
            threads=threads,
            native=native,
        )
        return Fit(question, [of_recipe(recipe) for recipe in own])


def _watch(fit: Fit, quiet: bool) -> bool:
    """Run the search; True where Ctrl-C ended it."""
    with Watcher(fit, quiet) as watcher:
        try:
            for row in fit.rows():
                watcher.add(row)
        except KeyboardInterrupt:
            output.note("stopped: the best so far is kept")
            return True
    for candidate, reason in fit.skipped:
        output.warn(f"{candidate.label} was left out: {reason}")
    return False


def _check_writable(path: Path) -> None:
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {folder}"
        raise typer.BadParameter(f"{path} {what}. Name a file, such as recipe.toml.", param_hint="--output")


def _announce(best: Measurement, path: Path, memory: int) -> None:
    quality = best.quality
    cost = "it is the uncompressed model"
    if quality is not None:
        cost = f"KL {quality.kl.value:.4f} (95% {quality.kl.low:.4f} to {quality.kl.high:.4f})"
        cost += f", the same first choice at {quality.top1.value:.1%} of the tokens"
    output.console().print(
        f"best: {best.candidate.label}: {output.megabytes(best.need.peak)} of {output.megabytes(memory)}, "
        f"{cost}. Written to {path}.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _answer(
    model: str,
    best: Measurement,
    memory: int,
    context: int,
    prompt: str,
    threads: int | None,
    native: bool | None,
    quiet: bool,
) -> str:
    recipe = best.candidate.recipe
    with opening.opened(
        model, recipe=recipe, memory=memory, threads=threads, native=native, context=context
    ) as thrifty:
        room = max(1, min(128, context // 2))
        if not quiet:
            sys.stdout.write(f"\n> {prompt}\n")
        handle = opening.submit(thrifty, [{"role": "user", "content": prompt}], {"max_tokens": room})
        for event in handle:
            if not quiet:
                sys.stdout.write(event.text)
                sys.stdout.flush()
        if not quiet:
            sys.stdout.write("\n")
        return handle.result().text


def _say_why_nothing(fit: Fit) -> None:
    measured = f"{len(fit.measured)} of {fit.total} recipes were measured"
    output.error(f"no recipe that fits was measured ({measured}); nothing was written.")


def _document(model: str, fit: Fit, best: Measurement, path: Path, answer: str, interrupted: bool) -> dict[str, Any]:
    from thrifty.evaluation.memory import import_baseline

    return {
        "model": model,
        "memory_bytes": fit.question.memory,
        "context": fit.question.context,
        "import_baseline_bytes": import_baseline(),
        "measured_after_tokens": fit.prefix,
        "skipped": [{"recipe": candidate.label, "reason": reason} for candidate, reason in fit.skipped],
        "candidates": [row.as_dict() for row in fit.measured],
        "best": best.as_dict(),
        "recipe_file": str(path),
        "answer": answer,
        "interrupted": interrupted,
    }
