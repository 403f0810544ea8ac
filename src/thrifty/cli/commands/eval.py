"""`thrifty eval`: what a recipe keeps of the model's abilities, task by task, against the uncompressed model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli.shared import eval_table, opening, options, output
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from thrifty.cli.shared.evaluating import Setting

EXAMPLE = "thrifty eval smollm2-135m --recipe recipe.toml --tasks recall,multi-turn --records records.jsonl"
TASKS = "recall,recall-many,multi-turn,aggregation,choice,perplexity"
PROTOCOL_TASKS = "continuation,recall,aggregation"


def command(
    model: options.ModelName,
    recipe: options.RecipePath = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            show_default=TASKS.replace(",", ", "),
            help="Tasks, with options as in recall:mode=aware; lm-eval:NAME runs one of lm-eval's.",
        ),
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="Questions a task.")] = 50,
    length: Annotated[int, typer.Option(min=16, help="Tokens of context that are compressed before a question.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes other questions.")] = 0,
    records: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep every answer as a JSON line; a run that was stopped goes on there."),
    ] = None,
    protocol: Annotated[
        bool,
        typer.Option("--protocol", help="Compare number formats, and how far their texts depart from the baseline's."),
    ] = False,
    off_grid: Annotated[
        bool,
        typer.Option("--off-grid", help="Permute the weights first: a 4-bit checkpoint is then not rounded exactly."),
    ] = False,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls", help="Grade the uncompressed model by other items' answers too: the score must fall."
        ),
    ] = False,
    threads: options.Threads = None,
    native: options.Native = None,
    as_json: options.Json = False,
) -> None:
    """Score a recipe and the uncompressed model on the same questions, and tell what the recipe keeps.

    Contexts are compressed before the question is asked. Recovery is the recipe's score over the uncompressed
    model's, with its 95 % interval. Ctrl-C keeps what is done; the last line is JSON.
    """
    from thrifty.cli.shared.evaluating import Setting

    setting = Setting(model, items, length, seed, records, off_grid, threads, native)
    names = split(tasks if tasks is not None else PROTOCOL_TASKS if protocol else TASKS)
    if controls:
        if protocol or recipe is not None:
            raise typer.BadParameter(
                "is of the uncompressed model alone; leave --recipe and --protocol out.", param_hint="--controls"
            )
        _controls(setting, names, as_json)
        return
    if protocol:
        if recipe is not None:
            raise typer.BadParameter("has its own formats; leave --recipe out.", param_hint="--protocol")
        interrupted = _protocol(setting, names, as_json)
    else:
        interrupted = _compare(setting, names, recipe, as_json)
    if interrupted:
        raise typer.Exit(130)


def split(text: str) -> list[str]:
    """The tasks of a list. Raises PromptError where there is none."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise PromptError(f"'{text}' names no task. Write e.g. --tasks recall,choice")
    return names


def _compare(setting: Setting, names: list[str], recipe: Path | None, quiet: bool) -> bool:
    from thrifty.cli.shared.evaluating import compare

    chosen = opening.read_recipe(recipe)
    rows, baseline, interrupted = compare(setting, names, chosen)
    document: dict[str, Any] = {
        **setting.as_dict(),
        "recipe": chosen.label(),
        "baseline": baseline.as_dict(),
        "weights": setting.weights_label(chosen, baseline),
        "tasks": [row.as_dict() for row in rows],
        "interrupted": interrupted,
    }
    if not quiet:
        eval_table.show(document)
    output.json_line(document)
    return interrupted


def _protocol(setting: Setting, names: list[str], quiet: bool) -> bool:
    from thrifty.cli.shared.evaluating import run_protocol

    rows, interrupted = run_protocol(setting, names)
    document: dict[str, Any] = {
        **setting.as_dict(),
        "off_grid": True,
        "protocol": "Give Me BF16 or Give Me Death (2411.02355)",
        "rows": [row.as_dict() for row in rows],
        "not_reported": "BERTScore and STS, which take a second model",
        "interrupted": interrupted,
    }
    if not quiet:
        eval_table.show_protocol(document)
    output.json_line(document)
    return interrupted


def _controls(setting: Setting, names: list[str], quiet: bool) -> None:
    """Exits with 1 where a control fails, with 130 after Ctrl-C."""
    from thrifty.cli.shared.eval_controls import run_controls, show_controls

    rows, baseline, interrupted = run_controls(setting, names)
    document: dict[str, Any] = {
        **setting.as_dict(),
        "baseline": baseline.as_dict(),
        "controls": [row.as_dict() for row in rows],
        "interrupted": interrupted,
    }
    if not quiet:
        show_controls(document)
    output.json_line(document)
    if interrupted or not all(row.passed for row in rows):
        raise typer.Exit(130 if interrupted else 1)
