"""How a strategy names a model that drafts: a name or path, or parts of the model that it decodes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from thrifty.errors import RecipeError

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
OWN = ("layers:", "adapter:")
MOST_LAYER = 10_000


@dataclass(frozen=True)
class OwnDraft:
    """The engine's own model as a model that drafts. layers: those that it runs, None for all. adapter: of the
    engine's, that it runs with; None for none.
    """

    layers: tuple[int, ...] | None = None
    adapter: str | None = None


def own_draft(name: str) -> OwnDraft | None:
    """What "layers:0-8,22-29", "adapter:NAME" or "adapter:NAME layers:0-8" stands for; None for a name or path.

    Raises RecipeError for layers that are none.
    """
    if not name.startswith(OWN):
        return None
    adapter, text = None, name
    if name.startswith("adapter:"):
        adapter, _, text = name.removeprefix("adapter:").partition(" ")
        if not adapter:
            raise RecipeError(f"draft = {name!r:.80} names no adapter; use adapter:NAME")
    if not text:
        return OwnDraft(None, adapter)
    if not text.startswith("layers:"):
        raise RecipeError(f"draft = {name!r:.80}: {text!r:.40} is unknown behind an adapter; use layers:0-8,22-29")
    return OwnDraft(_layers(name, text.removeprefix("layers:")), adapter)


def _layers(name: str, text: str) -> tuple[int, ...]:
    layers: list[int] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < MOST_LAYER or (layers and first <= layers[-1]):
            raise RecipeError(
                f"draft = {name!r:.80}: {part!r:.40} is no range of layers; use rising ones: layers:0-8,22-29"
            )
        layers.extend(range(first, last + 1))
    return tuple(layers)
