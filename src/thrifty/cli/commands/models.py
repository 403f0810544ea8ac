"""`thrifty models`: the models that are known by name, and what is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli import opening, options, output
from thrifty.cli.layout import Column

if TYPE_CHECKING:
    from thrifty.models.embedded import EmbeddedModel
    from thrifty.recipe import Recipe

EXAMPLE = "thrifty models"
Check = Annotated[
    bool, typer.Option("--check", help="Read every converted copy in the cache and remove those that are damaged.")
]


def command(recipe: options.RecipePath = None, check: Check = False, as_json: options.Json = False) -> None:
    """List the models that are known by name, and whether they are on this machine.

    With --recipe, also what each of those would take with it at its full context. With --check, the converted copies
    in the cache instead, each read whole: a damaged one is removed, and made again when its model is loaded. Any GGUF
    file, model folder or hub id works in the place of a name.
    """
    from thrifty.models.embedded import MODELS

    if check:
        _check_cache(recipe, as_json)
        return
    chosen = opening.read_recipe(recipe) if recipe is not None else None
    found = [_facts(model, chosen) for model in MODELS.values()]
    if as_json:
        output.json_line(found)
        return
    title = "" if chosen is None else f"needs: at the full context, with {chosen.label()}"
    output.table(title, _columns(chosen), [_row(facts, chosen) for facts in found])
    if not all(facts["path"] for facts in found):
        output.note("get one with `thrifty pull NAME`; `thrifty run NAME PROMPT` gets it too")
    if any(facts["path"] for facts in found):
        output.note("--json tells where they lie")


def _columns(recipe: Recipe | None) -> list[Column]:
    columns = [
        Column("model", number=False),
        Column("what it is", number=False, rank=2),
        Column("licence", number=False, rank=3),
        Column("here", number=False, rank=1),
        Column("size", rank=1),
    ]
    return columns if recipe is None else [*columns, Column("needs", rank=1), Column("tokens", rank=1)]


def _check_cache(recipe: Path | None, as_json: bool) -> None:
    """Every entry of the cache, what is wrong with it, and its removal where something is."""
    from thrifty.errors import ThriftyError
    from thrifty.models import converted, description
    from thrifty.models.cache_directory import remove
    from thrifty.models.cache_entry import entries, faults

    if recipe is not None:
        raise ThriftyError("--check looks at the cache, --recipe at models: give one of them")
    checked: list[dict[str, Any]] = []
    for path in [*entries(converted.KIND), *entries(description.KIND)]:
        with output.waiting(f"checking {path.name}"):
            size = sum(file.stat().st_size for file in path.iterdir())
            wrong = faults(path)
        if wrong:
            remove(path)
        checked.append({"path": str(path), "bytes": size, "faults": wrong, "removed": bool(wrong)})
    if as_json:
        output.json_line(checked)
        return
    columns = [Column("converted copy", number=False), Column("content", number=False), Column("size", rank=1)]
    rows = [[entry["path"], _verdict(entry["faults"]), output.megabytes(entry["bytes"])] for entry in checked]
    output.table("", columns, rows)


def _verdict(wrong: list[str]) -> str:
    if not wrong:
        return "sound"
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"damaged, removed: {wrong[0]}{more}"


def _facts(model: EmbeddedModel, recipe: Recipe | None) -> dict[str, Any]:
    from thrifty.models.embedded import find

    path = find(model)
    facts: dict[str, Any] = {
        "name": model.name,
        "title": model.title,
        "original": model.original,
        "licence": model.licence,
        "bytes": model.nbytes,
        "download_bytes": model.download_bytes,
        "path": None if path is None else str(path),
    }
    if recipe is not None:
        facts["need"] = None if path is None else _need(model.name, recipe)
    return facts


def _need(name: str, recipe: Recipe) -> dict[str, int]:
    """Peak bytes of one sequence as long as the model's context."""
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.sizes import of_model
    from thrifty.frontier.candidates import of_recipe
    from thrifty.frontier.predict import as_stored, predict
    from thrifty.models import load

    with output.waiting(f"loading {name}"):
        model = load(name)
        engine = Engine(model, prefix_tree=False)
    try:
        techniques = recipe.techniques("weights")
        for technique in techniques:
            technique.check(model)
        context = model.config.context_length
        sizes = as_stored(of_model(model), techniques)
        return {"context": context, "peak_bytes": predict(engine, of_recipe(recipe), context, sizes=sizes).peak}
    finally:
        engine.close()


def _row(facts: dict[str, Any], recipe: Recipe | None) -> list[str]:
    here = "yes" if facts["path"] else "no"
    cells = [facts["name"], facts["title"], facts["licence"], here, output.megabytes(facts["bytes"])]
    if recipe is None:
        return cells
    need = facts["need"]
    return [*cells, output.megabytes(need["peak_bytes"]), str(need["context"])] if need else [*cells, "-", "-"]
