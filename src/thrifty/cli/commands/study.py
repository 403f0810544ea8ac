"""`thrifty study`: published comparisons of many recipes, run on one's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from thrifty.cli.shared import options, output
from thrifty.cli.shared.quantities import parse_counts

EXAMPLE = "thrifty study quantization qwen2.5-coder-0.5b --minutes 60 --report study.html"
BATCHES = "1,4,8"


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="STUDY", show_default=False, help="Which study; without it all are listed.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A name from `thrifty models`, a GGUF file, a model folder or a hub id.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.0, show_default="no bound", help="It ends by then; so many items are asked as fit into it."),
    ] = None,
    items: Annotated[int, typer.Option(min=2, help="Items of every task, at most.")] = 50,
    length: Annotated[int, typer.Option(min=16, help="Tokens of context that are compressed before a question.")] = 512,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,...", show_default="the study's own", help="Tasks, with options as in eval."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,...", show_default="all", help="These formats of weights of the study alone."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,...", show_default="all", help="These formats of the cache alone."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", metavar="FILE", help="A recipe of yours as one more cell.")
    ] = None,
    batches: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Sequences that decode together, for the served rates; empty for none."),
    ] = BATCHES,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes other items.")] = 0,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="in the cache directory",
            help="Where answers are kept: a run that was stopped or killed goes on from it.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the state holds.")] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the table and a plot of score over bytes.")
    ] = None,
    threads: options.Threads = None,
    native: options.Native = None,
    as_json: options.Json = False,
) -> None:
    """Run a study on a model: every format of weights with every format of the cache on every task, against the
    uncompressed model on the same items.

    How long it will take is said first. Ctrl-C and a kill lose at most the answer that was being made; the same command
    goes on. Controls run beside the grid: the baseline a second time must give the same answers, and random eviction
    must lose; where one comes out otherwise the exit code is 1.
    """
    if name is None:
        _list(as_json)
        return
    document = _run(
        name=name,
        model=model,
        weights=_names(weights),
        caches=_names(cache),
        recipe=recipe,
        tasks=None if tasks is None else _tasks(tasks),
        items=items,
        length=length,
        batches=parse_counts(batches) if batches.strip() else (),
        seed=seed,
        minutes=minutes,
        state=state,
        fresh=fresh,
        threads=threads,
        native=native,
    )
    if report is not None:
        _write(report, document)
    if not as_json:
        from thrifty.cli.shared import study_table

        study_table.show(document)
    output.json_line(document)
    if document["interrupted"]:
        raise typer.Exit(130)
    if not document["sound"]:
        output.error("a control came out otherwise than it must: the figures are not to be believed")
        raise typer.Exit(1)


def _run(*, name: str, model: str | None, **asked: Any) -> dict[str, Any]:
    """The study's document. Raises StudyError for an unknown name before anything is loaded."""
    from thrifty.cli.shared import studying
    from thrifty.evaluation import studies

    studies.load(name)
    if model is None:
        raise typer.BadParameter(f"a model is missing: write thrifty study {name} MODEL.", param_hint="MODEL")
    return studying.run(studying.StudyOptions(name=name, model=model, **asked))


def _names(text: str | None) -> tuple[str, ...] | None:
    """The names of a list; None where none was given, which stands for all."""
    if text is None:
        return None
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _tasks(text: str) -> tuple[str, ...]:
    names = _names(text)
    if not names:
        from thrifty.errors import PromptError

        raise PromptError(f"'{text}' names no task. Write e.g. --tasks recall,choice")
    return names


def _write(path: Path, document: dict[str, Any]) -> None:
    from thrifty.evaluation.studies.harness.page import render
    from thrifty.files import replace_file
    from thrifty.models.store.cache_directory import storage_errors

    with storage_errors(path.resolve().parent):
        replace_file(path.resolve(), render(document))
    output.note(f"report: {path.resolve()}")


def _list(as_json: bool) -> None:
    from thrifty.cli.shared.layout import Column
    from thrifty.evaluation import studies

    known = {name: studies.load(name) for name in studies.names()}
    if as_json:
        output.json_line({"studies": [{"name": name, "title": own.title} for name, own in known.items()]})
        return
    rows = [(name, own.title, "; ".join(own.papers)) for name, own in known.items()]
    columns = (Column("study", number=False), Column("what it asks", number=False), Column("papers", number=False))
    output.table("", columns, rows)
