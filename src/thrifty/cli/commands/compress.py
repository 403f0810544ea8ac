"""`thrifty compress`: a model through a recipe's weight techniques, into a folder that every command takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli.shared import format_list, opening, options, output
from thrifty.cli.shared.quantities import parse_bytes
from thrifty.cli.shared.ticker import seconds

if TYPE_CHECKING:
    from thrifty.models.model import Model
    from thrifty.weights.calibration import CalibrationSet

EXAMPLE = "thrifty compress smollm2-135m --recipe recipe.toml -o smollm2-4bit"

ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A name from `thrifty models`, a GGUF file, a model folder or a hub id.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", show_default=False, help="The folder that will hold the model."),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT|FILE",
        show_default="a text that ships with Thrifty",
        help="What calibrated techniques look at: a text file, or the text itself.",
    ),
]
Sequences = Annotated[
    int | None,
    typer.Option(
        "--calibration-sequences",
        metavar="N",
        min=1,
        show_default="16",
        help="At most so many sequences of the calibration text; time and memory grow with them.",
    ),
]
Length = Annotated[
    int | None,
    typer.Option(
        "--calibration-tokens",
        metavar="N",
        min=2,
        show_default="256",
        help="Tokens of each sequence of the calibration text.",
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        parser=parse_bytes,
        rich_help_panel=options.MACHINE,
        help="Stop, with what is done kept, where the process holds more before a layer, e.g. 2GB.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace DIR where it is a compressed model.")]
ListFormats = Annotated[
    bool,
    typer.Option(
        "--list-formats", help="List the formats of weights: bits per weight with all that comes with them, and files."
    ),
]


def command(
    model: ModelName = None,
    recipe: options.RecipePath = None,
    out: Output = None,
    calibration: Calibration = None,
    calibration_sequences: Sequences = None,
    calibration_tokens: Length = None,
    memory: Memory = None,
    force: Force = False,
    list_formats: ListFormats = False,
    threads: options.Threads = None,
    no_copy: options.NoCopy = False,
    as_json: options.Json = False,
) -> None:
    """Compress a model's weights with the [[weights]] of a recipe and keep the result in a folder.

    Layer by layer: what is made goes to the disk at once, so that a model larger than memory goes through. The folder
    appears when it is whole. A run that was stopped goes on where it was when the same command is given again. Every
    command takes the folder in the place of a model; other stages of the recipe go into its run.toml.
    """
    if list_formats:
        format_list.show(as_json)
        return
    if model is None or recipe is None or out is None:
        raise typer.BadParameter("give MODEL, --recipe FILE and -o DIR, or --list-formats")
    from thrifty.cli.shared.compressing import Work
    from thrifty.weights.compressing.pipeline import compress

    chosen = opening.read_recipe(recipe)
    loaded = _loaded(model, threads, not no_copy)
    with Work(model) as work:
        report = compress(
            loaded,
            chosen,
            out,
            source=model,
            calibration=_calibration(loaded, calibration, calibration_sequences, calibration_tokens),
            force=force,
            memory=memory,
            watch=work.show,
            tell=work.tell,
        )
    if as_json:
        output.json_line({"path": str(out), **report})
        return
    _show(out, report, bool(chosen.prompt or chosen.cache or chosen.decoding))


def _loaded(model: str, threads: int | None, copy: bool) -> Model:
    from thrifty.api import open_model

    with opening.loading(model) as converting:
        return open_model(model, threads=threads, copy=copy, progress=converting)


def _calibration(model: Model, given: str | None, sequences: int | None, tokens: int | None) -> CalibrationSet | None:
    """The text of a file, the words that were given, or the default text in another size; None: nothing was asked."""
    from thrifty.errors import RecipeError
    from thrifty.models.checked_text import read_text
    from thrifty.weights.calibration import SEQUENCES, TOKENS, default_calibration, text_calibration

    if given is None and sequences is None and tokens is None:
        return None
    size = (sequences or SEQUENCES, tokens or TOKENS)
    if given is None:
        return default_calibration(model, *size)
    path = Path(given)
    if len(given) < 4096 and path.is_file():
        return text_calibration(model, read_text(path), path.name, *size)
    if len(given.split()) < 2 or _is_path(path):
        raise RecipeError(
            f"--calibration {given[:120]!r} is no file, and too short for a text or the name of one: give one or the "
            "other"
        )
    return text_calibration(model, given, "command line", *size)


def _is_path(given: Path) -> bool:
    """Whether words look like the name of a file, such as "my notes.txt", rather than like a text."""
    return len(str(given)) < 256 and "\n" not in str(given) and given.suffix[1:].isalpha()


def _show(out: Path, report: Mapping[str, Any], has_more: bool) -> None:
    totals, run = report["totals"], report["run"]
    output.say(
        f"{out}: {output.megabytes(totals['bytes'])}, {totals['bits_per_weight']:.3f} bits per weight "
        f"({totals['layers_bits_per_weight']:.3f} in the layers, {_errors(totals, len(report['recipe']))}), in "
        f"{seconds(run['seconds'])}, the process at most {output.megabytes(run['peak_process_bytes'])}."
    )
    if has_more:
        output.say(
            f"The recipe's other stages are in {out / 'run.toml'}: thrifty run {out} --recipe {out / 'run.toml'}"
        )


def _errors(totals: Mapping[str, Any], techniques: int) -> str:
    """How far the layers are from what the last of the techniques was given, and from the weights of MODEL."""
    last, original = totals["layers_error"], totals["layers_error_from_original"]
    if original is None:
        return f"error {last:.4f} by the last technique; parts were left out, so there is none from the weights given"
    if techniques == 1:
        return f"error {last:.4f}"
    return f"error {last:.4f} by the last technique, {original:.4f} from the weights given"
