"""`thrifty models`: the models that are known by name, and what is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli import opening, options, output

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
    columns = ["model", "what it is", "licence", "here"]
    if chosen is not None:
        columns.append(f"with {chosen.label()}")
    output.table("", [*columns, "size"], [_row(facts, chosen) for facts in found], left=len(columns))
    if not all(facts["path"] for facts in found):
        output.note("get one with `thrifty pull NAME`; `thrifty run NAME PROMPT` gets it too")


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
    rows = [[entry["path"], _verdict(entry["faults"]), output.megabytes(entry["bytes"])] for entry in checked]
    output.table("", ["converted copy", "content", "size"], rows, left=2)


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
    from thrifty.frontier.candidates import of_recipe
    from thrifty.frontier.predict import predict
    from thrifty.models import load
    from thrifty.weights.technique import prepare

    with output.waiting(f"loading {name}"):
        loaded = prepare(load(name), recipe.techniques("weights"))
        engine = Engine(loaded, prefix_tree=False)
    try:
        context = loaded.config.context_length
        return {"context": context, "peak_bytes": predict(engine, of_recipe(recipe), context).peak}
    finally:
        engine.close()


def _row(facts: dict[str, Any], recipe: Recipe | None) -> list[str]:
    cells = [facts["name"], facts["title"], facts["licence"], facts["path"] or "no"]
    if recipe is not None:
        need = facts["need"]
        cells.append(f"{output.megabytes(need['peak_bytes'])} at {need['context']} tokens" if need else "-")
    return [*cells, output.megabytes(facts["bytes"])]
