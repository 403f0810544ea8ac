"""`thrifty export`: a model in the file of another program, with the values that are stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thrifty.cli.shared import opening, options, output

if TYPE_CHECKING:
    from thrifty.recipe import Recipe

EXAMPLE = "thrifty export smollm2-4bit --gguf -o smollm2.gguf"

Target = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", show_default=False, help="The file; of GPTQ and AWQ a folder.")
]
AsGGUF = Annotated[bool, typer.Option("--gguf", help="A GGUF file, for llama.cpp and what builds on it.")]
AsGPTQ = Annotated[bool, typer.Option("--gptq", help="A folder as the packages of GPTQ write it.")]
AsAWQ = Annotated[bool, typer.Option("--awq", help="A folder as the packages of AWQ write it.")]


def command(
    model: options.ModelName,
    out: Target,
    recipe: options.RecipePath = None,
    gguf: AsGGUF = False,
    gptq: AsGPTQ = False,
    awq: AsAWQ = False,
    no_copy: options.NoCopy = False,
    as_json: options.Json = False,
) -> None:
    """Write a model, such as one of `thrifty compress`, in the format of another program.

    With --recipe, its weight techniques act first. Beyond them nothing is rounded: a tensor whose stored values the
    format cannot say is named, with what to do. `thrifty compress --list-formats` tells which formats go where.
    """
    asked = [name for name, given in (("gguf", gguf), ("gptq", gptq), ("awq", awq)) if given]
    if len(asked) != 1:
        raise typer.BadParameter("give one of --gguf, --gptq and --awq")
    _export(model, out, asked[0], opening.read_recipe(recipe), not no_copy)
    files = [out] if out.is_file() else [path for path in out.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    if as_json:
        output.json_line({"path": str(out), "format": asked[0], "bytes": size})
        return
    output.say(f"{out}: {output.megabytes(size)}")


def _export(model: str, out: Path, kind: str, recipe: Recipe, copy: bool) -> None:
    from thrifty.api import open_model
    from thrifty.errors import RecipeError
    from thrifty.models.export.folder import export_folder
    from thrifty.models.export.gguf import export_gguf

    if recipe.prompt or recipe.cache or recipe.decoding:
        raise RecipeError("a file of weights holds no prompt, cache or decoding: give a recipe of [[weights]] alone")
    with opening.loading(model) as converting:
        loaded = open_model(model, recipe, copy=copy, progress=converting)
    with output.waiting(f"writing {out}"):
        if kind == "gguf":
            export_gguf(loaded, out)
        else:
            export_folder(loaded, out, "gptq" if kind == "gptq" else "awq")
