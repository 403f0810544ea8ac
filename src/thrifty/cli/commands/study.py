"""`thrifty study`: published comparisons of many recipes, run on one's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from thrifty.cli.shared import options, output, study_options
from thrifty.cli.shared.quantities import parse_counts
from thrifty.errors import PromptError, ThriftyError

EXAMPLE = "thrifty study quantization qwen2.5-coder-0.5b --minutes 60 --report study.html"
BATCHES = "1,4,8"


def command(
    name: study_options.StudyName = None,
    model: study_options.ModelName = None,
    minutes: study_options.Minutes = None,
    items: study_options.Items = 50,
    length: study_options.Length = 512,
    tasks: study_options.Tasks = None,
    weights: study_options.Weights = None,
    methods: study_options.Methods = None,
    bits: study_options.Bits = None,
    repair: study_options.Repair = 0,
    models: study_options.Models = None,
    cache: study_options.Cache = None,
    recipe: study_options.OwnRecipe = None,
    batches: study_options.Batches = BATCHES,
    seed: study_options.Seed = 0,
    state: study_options.State = None,
    fresh: study_options.Fresh = False,
    report: study_options.Report = None,
    threads: options.Threads = None,
    native: options.Native = None,
    as_json: options.Json = False,
) -> None:
    """Run a study on a model: every format of weights with every format of the cache on every task, against the
    uncompressed model on the same items.

    With --methods the formats of weights are techniques by name, each at every width, and what the papers found stands
    beside what came out here.

    How long it will take is said first. Ctrl-C and a kill lose at most the answer that was being made; the same command
    goes on. Controls run beside the grid: the baseline a second time must give the same answers, and random eviction
    must lose; where one comes out otherwise the exit code is 1.
    """
    if name is None:
        _list(as_json)
        return
    asked = {
        "weights": _names(weights),
        "methods": _names(methods) or (),
        "bits": None if bits is None else parse_counts(bits),
        "repair": repair,
        "caches": _names(cache),
        "recipe": recipe,
        "tasks": None if tasks is None else _tasks(tasks),
        "items": items,
        "length": length,
        "batches": parse_counts(batches) if batches.strip() else (),
        "seed": seed,
        "state": state,
        "fresh": fresh,
        "threads": threads,
        "native": native,
    }
    chosen = _models(name, model, models, report, state)
    share = None if minutes is None else minutes / len(chosen)
    documents: list[dict[str, Any]] = []
    for one in chosen:
        documents.append(_run(name=name, model=one, minutes=share, **asked))
        if not as_json:
            _show(documents[-1])
        if documents[-1]["interrupted"]:
            break
    failure = None if report is None else _written(report, documents[0])
    told = documents[0] if len(chosen) == 1 else {"study": name, "models": documents}
    output.json_line(told | ({"error": str(failure), "kind": type(failure).__name__} if failure else {}))
    if failure is not None and not as_json:
        output.error(str(failure))
    _end(documents, failure)


def _show(document: dict[str, Any]) -> None:
    from thrifty.cli.shared import study_table

    study_table.show(document)


def _end(documents: list[dict[str, Any]], failure: ThriftyError | None) -> None:
    """Exit with 130 after Ctrl-C, with 1 where a control came out otherwise than it must or a page was not written."""
    sound = all(document["sound"] for document in documents)
    if not sound:
        output.error("a control came out otherwise than it must: the figures are not to be believed")
    interrupted = documents[-1]["interrupted"]
    if interrupted or failure is not None or not sound:
        raise typer.Exit(130 if interrupted else 1)


def _models(name: str, model: str | None, models: str | None, report: Path | None, state: Path | None) -> list[str]:
    """The models in order. Raises typer.BadParameter where there is none, or several for one page or one state."""
    chosen = list(dict.fromkeys([*([] if model is None else [model]), *(_names(models) or ())]))
    if not chosen:
        from thrifty.evaluation import studies

        studies.load(name)
        raise typer.BadParameter(f"a model is missing: write thrifty study {name} MODEL.", param_hint="MODEL")
    for option, value in (("--report", report), ("--state", state)):
        if value is not None and len(chosen) > 1:
            raise typer.BadParameter(f"{option} is one file, and {len(chosen)} models are asked for: name one model.")
    return chosen


def _run(**asked: Any) -> dict[str, Any]:
    """The study's document. Raises StudyError for an unknown name before anything is loaded."""
    from thrifty.cli.shared import studying
    from thrifty.evaluation import studies

    studies.load(asked["name"])
    return studying.run(studying.StudyOptions(**asked))


def _names(text: str | None) -> tuple[str, ...] | None:
    """The names of a list; None where none was given, which stands for all."""
    if text is None:
        return None
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _tasks(text: str) -> tuple[str, ...]:
    names = _names(text)
    if not names:
        raise PromptError(f"'{text}' names no task. Write e.g. --tasks recall,choice")
    return names


def _written(path: Path, document: dict[str, Any]) -> ThriftyError | None:
    """Write the page of a long run; what that raises is told beside the result instead of in its place."""
    from thrifty.evaluation.studies.harness.page import render
    from thrifty.files import replace_file
    from thrifty.models.store.cache_directory import storage_errors

    try:
        with storage_errors(path.resolve().parent):
            replace_file(path.resolve(), render(document))
    except ThriftyError as error:
        return error
    output.note(f"report: {path.resolve()}")
    return None


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
