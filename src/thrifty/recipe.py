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

`weights` belongs to the model; `cache` and `decoding` belong to a request. A stage's techniques act in order.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thrifty import registry
from thrifty.errors import RecipeError, nearest


class Recipe(BaseModel):
    """Techniques by stage. An empty recipe is the model as shipped with the full cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="", description="what people call it; shown in tables")
    weights: list[dict[str, Any]] = Field(default_factory=list)
    cache: list[dict[str, Any]] = Field(default_factory=list)
    decoding: list[dict[str, Any]] = Field(default_factory=list)

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
        for key in document:
            if key not in cls.model_fields:
                raise RecipeError(f"{source}: unknown stage '{key}'. {nearest(key, cls.model_fields)}")
        try:
            recipe = cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RecipeError(f"{source}: '{where}': {first['msg']} (each stage is a list of [[tables]])") from error
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
        document = {key: value for key, value in self.model_dump().items() if value}
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(tomli_w.dumps(document).encode())
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
        except OSError as error:
            raise RecipeError(f"cannot write recipe '{file}': {error}") from error
        finally:
            Path(temporary).unlink(missing_ok=True)

    def techniques(self, stage: str) -> list[Any]:
        """The stage's technique instances, in order. Raises RecipeError for an unknown name, option or value."""
        return [registry.build(stage, table) for table in getattr(self, stage)]

    def label(self) -> str:
        """A short name for tables: the given one, or the techniques with the options that were set."""
        if self.name:
            return self.name
        parts = [_short(table) for stage in registry.STAGES for table in getattr(self, stage)]
        return " + ".join(parts) or "as shipped"


def _short(table: dict[str, Any]) -> str:
    options = [f"{key}={value}" for key, value in table.items() if key != "technique"]
    return f"{table['technique']}({', '.join(options)})" if options else str(table["technique"])
