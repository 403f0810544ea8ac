"""`thrifty roofline`: what a model and a recipe could reach at most on this machine, or on another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thrifty.cli.shared import opening, options, output
from thrifty.cli.shared.roofline_table import document, show, show_machines

if TYPE_CHECKING:
    from thrifty.evaluation.roofline.cost import Estimate
    from thrifty.evaluation.roofline.machine import Machine
    from thrifty.evaluation.roofline.sizes import ModelSizes
    from thrifty.recipe import Recipe

EXAMPLE = "thrifty roofline smollm2-135m --machine rtx-4090 --length 4096 --batch 8"


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A name from `thrifty models`, a GGUF file, a model folder (config.json is enough) or a hub id.",
        ),
    ] = None,
    machine: Annotated[
        str, typer.Option("--machine", "-m", metavar="NAME", help="A name from --list; 'this' is measured.")
    ] = "this",
    length: Annotated[int, typer.Option(min=1, help="Tokens of the prompt, and of the context decoded after.")] = 2048,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    recipe: options.RecipePath = None,
    listing: Annotated[bool, typer.Option("--list", help="List the machines that are known, and stop.")] = False,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Count operations and bytes of every layer, say which of memory and arithmetic bounds it, and the least
    time a token can take.

    A folder or hub id needs no weights, and counts 16 bits a number then; of a GGUF file and of a quantised folder the
    bytes of its own tensors count, and nothing is converted. A recipe's decoding counts by the rows of its steps and by
    the model that drafts.
    Nothing is run: `thrifty bench` says how near a machine comes.
    """
    if listing:
        _list(as_json)
        return
    if model is None:
        raise typer.BadParameter("name a model, or use --list to see the machines.", param_hint="MODEL")
    chosen = opening.read_recipe(recipe)
    target = _machine(machine, threads)
    sizes = _sizes(model, chosen, length)
    from thrifty.evaluation.roofline.cost import estimate

    drafts = [_draft(name, target, length, batch) for name in chosen.drafts]
    rows = max((strategy.rows for strategy in chosen.techniques("decoding")), default=1)
    bound = estimate(
        sizes, chosen.techniques("cache"), target,
        length=length, batch=batch, rows=rows, draft=drafts[0] if drafts else None,
    )  # fmt: skip
    if as_json:
        output.json_line(document(model, chosen.label(), bound))
    else:
        show(model, chosen.label(), bound)


def _machine(name: str, threads: int | None) -> Machine:
    from thrifty.evaluation.roofline import machine

    if name != machine.THIS:
        return machine.named(name)
    with output.waiting("measuring this machine"):
        return machine.this_machine(threads)


def _sizes(model: str, recipe: Recipe, length: int) -> ModelSizes:
    """The model's parts as the recipe stores them. Raises PromptError beyond its context, with what works."""
    from thrifty.cache.composition import check_order
    from thrifty.errors import PromptError
    from thrifty.frontier.predict import as_stored

    check_order(recipe.techniques("cache"))
    shipped = _shipped(model)
    limit = shipped.config.context_length
    if length > limit:
        raise PromptError(f"length {length} is beyond what {model} was made for; use 1 to {limit}")
    return as_stored(shipped, recipe.techniques("weights"))


def _shipped(model: str) -> ModelSizes:
    """The model's parts as its checkpoint has them."""
    from thrifty.evaluation.roofline import sizes
    from thrifty.models.inspection import inspect
    from thrifty.models.loading import resolve
    from thrifty.models.peek import config_of, is_quantised

    config, path = config_of(model), Path(model)
    if config is not None and not (path.is_dir() and is_quantised(path)):
        return sizes.of_config(config)
    with output.waiting(f"opening {model}"):
        file = inspect(resolve(model))
        return sizes.of_file(file.config, file.tensors)


def _draft(model: str, machine: Machine, length: int, batch: int) -> Estimate:
    """The roofline of a model that drafts; beyond its context it drafts no more. Raises PromptError for one that is
    made of the model's own layers.
    """
    from thrifty.decoding.draft_names import own_draft
    from thrifty.errors import PromptError
    from thrifty.evaluation.roofline.cost import estimate

    if own_draft(model) is not None:
        raise PromptError(
            f"draft = {model!r} runs parts of the model itself, and the roofline knows drafts of other models alone: "
            "leave the recipe's decoding stage out"
        )
    sizes = _shipped(model)
    return estimate(sizes, (), machine, length=min(length, sizes.config.context_length), batch=batch)


def _list(as_json: bool) -> None:
    from thrifty.evaluation.roofline import machine

    machines = [machine.named(name) for name in machine.names()]
    if as_json:
        output.json_line([known.as_dict() for known in machines])
    else:
        show_machines(machines)
