"""`thrifty heads`: measure which attention heads look things up, once a model."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli.shared import opening, options, output
from thrifty.cli.shared.layout import Column
from thrifty.cli.shared.progress import progress

if TYPE_CHECKING:
    from thrifty.models.head_scores import HeadScores

EXAMPLE = "thrifty heads smollm2-135m --length 256 --depths 4"
SHOWN = 10  # heads in the table for people


class Kind(StrEnum):
    """What the questions ask for."""

    r = "r"
    r2 = "r2"
    kvzip = "kvzip"
    both = "both"


def command(
    model: options.ModelName,
    kind: Annotated[
        Kind,
        typer.Option(
            help="r: retrieval (`headkv`). r2: retrieval and reasoning (`headkv-r2`). both: these. kvzip: repeating "
            "a text (`kvzip` with level head)."
        ),
    ] = Kind.r,
    length: Annotated[
        list[int] | None,
        typer.Option(
            metavar="TOKENS",
            min=1,
            show_default="256, 480; kvzip: 1024",
            help="Of the questions; repeat for several. Kind kvzip: of each sample text.",
        ),
    ] = None,
    depths: Annotated[int, typer.Option(min=1, help="Places of the needle for every length.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Questions for every length and place.")] = 1,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", "-r", metavar="FILE", help="Make the scores that a recipe's techniques need."),
    ] = None,
    threads: options.Threads = None,
    native: options.Native = None,
    as_json: options.Json = False,
) -> None:
    """Score a model's attention heads by questions that it answers itself, and keep the scores beside the checkpoint
    (where that folder cannot be written, or is a package's: in Thrifty's cache directory).

    The cache techniques `headkv` and `headkv-r2`, and `kvzip` with level head, share their budget out by these scores.
    They are of the checkpoint: techniques on weights do not change them. The questions' words are no task's.
    """
    from thrifty.evaluation.heads.probe import ProbeSettings, probe
    from thrifty.models.head_scores import save
    from thrifty.recipe import Recipe

    lengths = tuple(length) if length else ProbeSettings.lengths
    sample = max(length) if length else ProbeSettings.sample
    settings = ProbeSettings(lengths=lengths, depths=depths, repeats=repeats, sample=sample)
    kinds = [Kind.r.value, Kind.r2.value] if kind is Kind.both else [kind.value]
    if recipe is not None:
        kinds = _of_recipe(recipe)
    saved: list[tuple[HeadScores, Path]] = []
    with opening.opened(model, recipe=Recipe(), threads=threads, native=native) as thrifty:
        for asked in kinds:
            with progress(f"questions of kind {asked}", settings.questions(asked)) as steps:
                scores = probe(thrifty.engine, asked, settings, steps.advance)
            saved.append((scores, save(thrifty.model, scores)))
        config = thrifty.model.config
    widths = [config.widths(layer) for layer in range(len(config.layers))]
    groups = {layer: heads // kv_heads for layer, (heads, kv_heads, _) in enumerate(widths)}
    if as_json:
        output.json_line({"model": model, "kinds": {scores.kind: _document(scores, path) for scores, path in saved}})
        return
    for scores, path in saved:
        _show(scores, path, groups)


def _of_recipe(path: Path) -> list[str]:
    """The kinds that a recipe's techniques ask for. Raises RecipeError where there are none."""
    from thrifty.errors import RecipeError

    chosen = opening.read_recipe(path)
    asked = (getattr(technique, "kind", None) for technique in chosen.techniques("cache"))
    kinds = dict.fromkeys(kind for kind in asked if kind is not None)
    if not kinds:
        raise RecipeError(f"no technique of recipe '{path}' needs scores of heads: use one such as headkv, or --kind")
    return list(kinds)


def _document(scores: HeadScores, path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(scores) | {"path": str(path)}


def _show(probed: HeadScores, path: Path, groups: Mapping[int, int]) -> None:
    """groups: query heads a KV head, by layer."""
    scores = probed.array()
    total = float(scores.sum())
    order = (-scores.flatten()).argsort(kind="stable")[:SHOWN].tolist()
    rows = []
    for place in order:
        rank, head = divmod(place, scores.shape[1])
        share = float(scores[rank, head]) / total
        layer = probed.layers[rank]
        rows.append((str(layer), str(head), str(head // groups[layer]), f"{share:.1%}"))
    title = f"{probed.kind}: {probed.used} of {probed.asked} questions answered"
    columns = [Column(name) for name in ("layer", "query head", "KV head", "share of the score")]
    output.table(title, columns, rows)
    output.say(f"Written to {path}.")
