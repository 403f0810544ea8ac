"""Models and adapters as `thrifty serve` is told of them: NAME=MODEL, NAME=FOLDER, MODEL:NAME=FOLDER."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from thrifty.errors import nearest

if TYPE_CHECKING:
    from thrifty.recipe import Recipe
    from thrifty.serving.model_shelf import ModelShelf
    from thrifty.serving.served_model import Fits, ModelSource
    from thrifty.serving.settings import ServerSettings


@dataclass(frozen=True)
class ServedModels:
    """What `thrifty serve` puts on its shelf; a cluster sends it to every replica. models: names and what is opened
    for them. adapters: by model, names and folders. engine: options of `open_engine`. several: --model was used.
    """

    settings: ServerSettings
    models: Mapping[str, str]
    adapters: Mapping[str, Mapping[str, Path]]
    recipe: Recipe
    engine: Mapping[str, Any]
    several: bool

    def made(self) -> ModelShelf:
        """A shelf of them. One model is loaded at once, several when they are asked for, inside one memory."""
        from thrifty.serving.model_shelf import ModelShelf

        memory = self.engine["memory"] if self.several else None
        return ModelShelf(self.settings, list(map(self._source, self.models)), memory=memory, preload=not self.several)

    def _source(self, name: str) -> ModelSource:
        from thrifty.api import open_engine
        from thrifty.serving.served_model import ModelSource

        def opened(fits: Fits) -> Any:
            told = fits if self.several else None
            return open_engine(self.models[name], self.recipe, fits=told, **self.engine)

        return ModelSource(name, opened, self.adapters[name])


def served_models(model: str | None, named: list[str], name: str | None) -> dict[str, str]:
    """Models by the names that clients use. model, name: the only one's, and how it is called. named: NAME=MODEL.

    Raises typer.BadParameter.
    """
    if model is not None and named:
        raise typer.BadParameter(f"give MODEL or --model, not both: '{model}' would be --model NAME={model}")
    if model is not None:
        return {name or _plain_name(model): model}
    if not named:
        raise typer.BadParameter("no model is named: give MODEL, or --model NAME=MODEL for each of several")
    if name is not None:
        raise typer.BadParameter("--name is for one MODEL; several have theirs in --model NAME=MODEL")
    models: dict[str, str] = {}
    for pair in named:
        known_as, path = _pair(pair, "--model", "NAME=MODEL", "chat=smollm2-135m")
        if known_as in models:
            raise typer.BadParameter(f"--model names '{known_as}' twice; give each a name of its own")
        models[known_as] = path
    return models


def served_adapters(named: list[str], models: Iterable[str]) -> dict[str, dict[str, Path]]:
    """For every model its adapters: name → folder. named: NAME=FOLDER where there is one model, else MODEL:NAME=FOLDER.

    Raises typer.BadParameter.
    """
    adapters: dict[str, dict[str, Path]] = {model: {} for model in models}
    for pair in named:
        known_as, folder = _pair(pair, "--adapter", "NAME=FOLDER", "sql=adapters/sql, or chat:sql=adapters/sql")
        base, separator, name = known_as.rpartition(":")
        if not separator and len(adapters) > 1:
            raise typer.BadParameter(f"--adapter {pair!r} says not of which model; write MODEL:NAME=FOLDER")
        model = base if separator else next(iter(adapters))
        if model not in adapters:
            raise typer.BadParameter(f"--adapter {pair!r}: there is no model '{model}'. {nearest(model, adapters)}")
        if not name or name in adapters[model]:
            raise typer.BadParameter(f"--adapter {pair!r}: give each adapter of '{model}' a name of its own")
        if not Path(folder).is_dir():
            raise typer.BadParameter(f"--adapter {pair!r}: there is no folder '{folder}'")
        adapters[model][name] = Path(folder)
    return adapters


def _pair(text: str, flag: str, form: str, example: str) -> tuple[str, str]:
    """A name and what it stands for. Raises typer.BadParameter that names the flag and its form."""
    known_as, separator, value = text.partition("=")
    if not separator or not known_as.strip() or not value.strip():
        raise typer.BadParameter(f"{flag} {text!r} is not {form}. Write e.g. {example}")
    return known_as.strip(), value.strip()


def _plain_name(model: str) -> str:
    """The name of a file or folder without its path; any other as it is."""
    path = Path(model)
    return path.name.removesuffix(".gguf") if path.exists() else model
