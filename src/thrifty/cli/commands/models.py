"""`thrifty models`: the models that are known by name, what a file is, and the converted copies on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli.shared import model_copies, model_facts, opening, options, output
from thrifty.cli.shared.layout import Column
from thrifty.cli.shared.quantities import parse_counts

if TYPE_CHECKING:
    from thrifty.models.embedded import EmbeddedModel
    from thrifty.recipe import Recipe

EXAMPLE = "thrifty models smollm2-135m"
Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        show_default=False,
        help="Show what this is: a name from the list, a GGUF file or a model folder.",
    ),
]
Copies = Annotated[bool, typer.Option("--copies", help="List the converted copies in the cache with their sizes.")]
Remove = Annotated[
    list[str] | None,
    typer.Option(
        "--remove",
        metavar="COPY",
        show_default=False,
        help="Remove converted copies: by model, path, the first 6 or more digits of a copy's name, `unusable` or "
        "`all`; repeat for several.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")]
Contexts = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", show_default="2048, 8192, all", help="Contexts that memory is told for."),
]
Check = Annotated[
    bool, typer.Option("--check", help="Read every converted copy in the cache and remove those that are damaged.")
]


def command(
    model: Target = None,
    recipe: options.RecipePath = None,
    contexts: Contexts = None,
    copies: Copies = False,
    remove: Remove = None,
    yes: Yes = False,
    check: Check = False,
    as_json: options.Json = False,
) -> None:
    """List the models that are known by name, and whether they are on this machine; or show what a file is.

    With MODEL: its architecture, sizes, types of tensors, what of them is kept exactly, tokenizer, and the memory that
    a context takes (with --recipe: under it), from the file's headers, without converting it. Without, --recipe tells
    what each model of the list would take at its full context.
    Loading a model makes a converted copy of it in the cache: --copies lists these, --remove removes some, and --check
    reads each whole and removes what is damaged; they are made again when their model is loaded. Any GGUF file, model
    folder or hub id works in the place of a name.
    """
    _check_questions(model=model, check=check, copies=copies, remove=remove)
    if check:
        _check_cache(recipe, as_json)
    elif remove:
        model_copies.remove(remove, yes, as_json)
    elif copies:
        model_copies.show(as_json)
    elif model is not None:
        chosen = opening.read_recipe(recipe)
        model_facts.show(model, chosen, None if contexts is None else parse_counts(contexts), as_json)
    else:
        _list(opening.read_recipe(recipe) if recipe is not None else None, as_json)


def _check_questions(**asked: object) -> None:
    """Raise typer.BadParameter where more than one thing is asked for."""
    given = [{"model": "MODEL"}.get(name, f"--{name}") for name, value in asked.items() if value]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} are different questions; ask one at a time.")


def _list(chosen: Recipe | None, as_json: bool) -> None:
    from thrifty.models.embedded import MODELS

    listed = [_facts(model, chosen) for model in MODELS.values()]
    if as_json:
        output.json_line(listed)
        return
    title = "" if chosen is None else f"needs: at the full context, with {chosen.label()}"
    output.table(title, _columns(chosen), [_row(facts, chosen) for facts in listed])
    if chosen is not None and chosen.drafts:
        output.note(model_facts.DRAFTS.format(" and ".join(chosen.drafts)))
    if not all(facts["path"] for facts in listed):
        output.note("get one with `thrifty pull NAME`; `thrifty run NAME PROMPT` gets it too")
    if any(facts["path"] for facts in listed):
        output.note("`thrifty models NAME` shows one; --json tells where they lie")
    model_copies.say_total()


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
    from thrifty.models import description
    from thrifty.models.store import converted
    from thrifty.models.store.cache_directory import remove
    from thrifty.models.store.cache_entry import entries, faults

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
        facts["drafts"] = list(recipe.drafts)
        facts["need"] = None if path is None else _need(model.name, recipe)
    return facts


def _need(name: str, recipe: Recipe) -> dict[str, int]:
    """Peak bytes of one sequence as long as the model's context, without what a model that drafts takes."""
    from thrifty.api import open_engine
    from thrifty.evaluation.roofline.sizes import of_model
    from thrifty.frontier.candidates import of_recipe
    from thrifty.frontier.predict import as_stored, predict

    with output.waiting(f"loading {name}"):
        engine = open_engine(name, prefix_tree=False)
    try:
        model = engine.model
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
