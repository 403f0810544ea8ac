"""`thrifty models`: the models that are known by name, and what is on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thrifty.cli import opening, options, output
from thrifty.cli.layout import Column

if TYPE_CHECKING:
    from thrifty.models.embedded import EmbeddedModel
    from thrifty.recipe import Recipe

EXAMPLE = "thrifty models"


def command(recipe: options.RecipePath = None, as_json: options.Json = False) -> None:
    """List the models that are known by name, and whether they are on this machine.

    With --recipe, also what each of those would take with it at its full context. Any GGUF file, model folder
    or hub id works in the place of a name.
    """
    from thrifty.models.embedded import MODELS

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
            technique.check(model.decoder)
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
