"""A recipe: which techniques a model runs with, stage by stage, as a TOML document.

    [[weights]]
    technique = "rtn"
    bits = 4
    [[cache]]
    technique = "snapkv"
    keep = 0.5
    [[cache]]
    technique = "kivi"
    bits = 2

`weights` belongs to the model; `prompt`, `cache` and `decoding` belong to a request. A stage's techniques act in order.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from thrifty import registry
from thrifty.errors import RecipeError, nearest
from thrifty.files import replace_file

Tables = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Techniques by stage. An empty recipe is the model as shipped with the full cache.

    name: what people call it, shown in tables. Raises RecipeError where a stage is no list of tables.
    """

    name: str = ""
    weights: Tables = field(default_factory=list)
    prompt: Tables = field(default_factory=list)
    cache: Tables = field(default_factory=list)
    decoding: Tables = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise RecipeError(f"'name' is {self.name!r:.80}; a recipe's name is text")
        for stage in registry.STAGES:
            object.__setattr__(self, stage, _tables(stage, getattr(self, stage)))

    @classmethod
    def parse(cls, text: str, source: str = "recipe") -> Recipe:
        """A recipe from TOML text, every technique and option checked.

        Raises RecipeError naming the field, with the nearest known name.
        """
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{source} is not valid TOML: {error}") from error
        return cls.from_document(document, source)

    @classmethod
    def from_document(cls, document: dict[str, Any], source: str = "recipe") -> Recipe:
        """A recipe from plain tables, checked like `parse`."""
        known = [item.name for item in fields(cls)]
        for key in document:
            if key not in known:
                raise RecipeError(f"{source}: unknown stage '{key}'. {nearest(str(key), known)}")
        try:
            recipe = cls(**document)
        except RecipeError as error:
            raise RecipeError(f"{source}: {error}") from error
        for stage in registry.STAGES:
            recipe.techniques(stage)
        return recipe

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """A recipe from a TOML file. Raises RecipeError where it is missing, unreadable or invalid."""
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read recipe '{file}': {error}") from error
        return cls.parse(text, source=str(file))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe as TOML, atomically: a kill leaves the old file or the new one."""
        import tomli_w

        file = Path(path)
        document = {key: value for key, value in self.as_dict().items() if value}
        try:
            replace_file(file, tomli_w.dumps(document))
        except OSError as error:
            raise RecipeError(f"cannot write recipe '{file}': {error}") from error

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the name, and each stage's tables."""
        return asdict(self)

    def techniques(self, stage: str) -> list[Any]:
        """The stage's technique instances, in order. Raises RecipeError for an unknown name, option or value."""
        return [registry.build(stage, table) for table in getattr(self, stage)]

    @property
    def drafts(self) -> tuple[str, ...]:
        """Names or paths of the models that draft. Raises RecipeError as `techniques`."""
        return tuple(name for stage in ("prompt", "decoding") for own in self.techniques(stage) for name in own.models)

    def label(self) -> str:
        """A short name for tables: the given one, or the techniques with the options that were set."""
        if self.name:
            return self.name
        parts = [_short(table) for stage in registry.STAGES for table in getattr(self, stage)]
        return " + ".join(parts) or "as shipped"


def _tables(stage: str, tables: Any) -> Tables:
    """A copy of a stage's tables."""
    if not isinstance(tables, list | tuple):
        raise RecipeError(f"'{stage}' is {tables!r:.80}; it must be a list (each stage is a list of [[tables]])")
    for place, table in enumerate(tables):
        if not isinstance(table, dict) or not all(isinstance(option, str) for option in table):
            raise RecipeError(
                f"'{stage}.{place}' is {table!r:.80}; it must be a table of options (each stage is a list)"
            )
    return [dict(table) for table in tables]


def _short(table: dict[str, Any]) -> str:
    options = [f"{key}={value}" for key, value in table.items() if key != "technique"]
    return f"{table['technique']}({', '.join(options)})" if options else str(table["technique"])
