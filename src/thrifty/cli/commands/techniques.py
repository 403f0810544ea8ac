"""`thrifty techniques`: the cards of what Thrifty can do."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from thrifty.cli.shared import opening, options, output
from thrifty.cli.shared.layout import Column

EXAMPLE = "thrifty techniques kivi"

COLUMNS = (
    Column("technique", number=False),
    Column("stage", number=False, rank=2),
    Column("paper", number=False, rank=3),
    Column("the paper's claim", number=False, rank=1),
)
SUMMARY = ("name", "stage", "paper", "claim")


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="Show this one in full.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Only this stage: weights, prompt, cache or decoding.")] = None,
    recipe: options.RecipePath = None,
    as_json: options.Json = False,
) -> None:
    """List the techniques with their papers and claims, or show one card. --recipe lists those that a recipe
    uses.
    """
    listed = _of_recipe(opening.read_recipe(recipe)) if recipe is not None else _of_stages(stage)
    if name is not None:
        where = "in this recipe" if recipe is not None else f"of stage {stage}" if stage is not None else "of that name"
        _show([_named(name, listed, where)], as_json)
    elif as_json:
        cards = [_describe(*place) for place in listed]
        output.json_line([{key: card[key] for key in SUMMARY} for card in cards])
    else:
        cards = [_describe(*place) for place in listed]
        rows = [(card["name"], card["stage"], f"{card['paper']} ({card['year']})", card["claim"]) for card in cards]
        output.table("", COLUMNS, rows)


def _of_stages(stage: str | None) -> list[tuple[str, str]]:
    from thrifty import registry
    from thrifty.errors import nearest

    if stage is not None and stage not in registry.STAGES:
        raise typer.BadParameter(f"no stage {stage!r}. {nearest(stage, registry.STAGES)}", param_hint="--stage")
    stages = [stage] if stage is not None else list(registry.STAGES)
    return [(each, name) for each in stages for name in registry.names(each)]


def _of_recipe(recipe: Any) -> list[tuple[str, str]]:
    from thrifty import registry

    used = [(stage, table["technique"]) for stage in registry.STAGES for table in getattr(recipe, stage)]
    return list(dict.fromkeys(used))


def _named(name: str, listed: list[tuple[str, str]], where: str) -> tuple[str, str]:
    from thrifty.errors import nearest

    for place in listed:
        if place[1] == name:
            return place
    message = f"no technique {name!r} {where}. {nearest(name, [known for _, known in listed])}"
    raise typer.BadParameter(message, param_hint="NAME")


def _describe(stage: str, name: str) -> dict[str, Any]:
    from thrifty import registry

    return registry.describe(stage, name)


def _show(places: list[tuple[str, str]], as_json: bool) -> None:
    cards = [_describe(*place) for place in places]
    if as_json:
        output.json_line(cards)
        return
    for card in cards:
        limits = card.get("limits") or ["none stated"]
        rows = [
            ("technique", f"{card['name']} (stage {card['stage']})"),
            ("paper", f"{card['title']} ({card['paper']}, {card['year']})"),
            ("mechanism", card["mechanism"]),
            ("claim", card["claim"]),
            *(("limit", limit) for limit in limits),
            ("options", " ".join(card["about_options"].split())),
            *((f"option {key}", _setting(card, key)) for key in card["options"]),
        ]
        output.card("", rows)


def _setting(card: dict[str, Any], option: str) -> str:
    if option in card["required"]:
        return "must be set"
    default = card["options"][option]
    return "not set by default" if default is None else f"default {default!r}"
