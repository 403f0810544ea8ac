"""The rows of the table: every registered technique at every budget, by its own option of a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from thrifty import registry
from thrifty.recipe import Recipe

Table = dict[str, Any]
THRIFTY, KVPRESS = "Thrifty", "kvpress"


@dataclass(frozen=True)
class Row:
    """One setting of one engine. budget: as the table says it. tables: a recipe's cache tables for a prompt of so many
    tokens. press: kvpress's class and options, None for Thrifty's rows. setting: what tells it from the engine's other
    rows of the same budget. note: what a reader must know of it.
    """

    engine: str
    technique: str
    budget: str
    tables: Callable[[int], list[Table]] = lambda length: []
    press: Table | None = None
    setting: str = ""
    note: str = ""

    @property
    def label(self) -> str:
        """Tells it from all other rows."""
        setting = f"({self.setting})" if self.setting else ""
        return " ".join(part for part in (self.engine, self.technique, self.budget, setting) if part)


def thrifty_rows(
    names: Sequence[str], shares: Sequence[float], options: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Row]:
    """The uncompressed cache first, then every technique in the order of `names` at every share of the prompt, with
    `options` by its name beside its defaults.
    """
    found = [Row(THRIFTY, "full", "")]
    for name in names:
        found += [_with(row, (options or {}).get(name, {})) for row in _rows(name, shares) if name != "full"]
    return found


def _with(row: Row, options: Mapping[str, Any]) -> Row:
    return dataclasses.replace(row, tables=lambda length: [{**table, **options} for table in row.tables(length)])


def recipe_rows(paths: Sequence[Path]) -> list[Row]:
    """The cache tables of recipe files, as they stand there."""
    found = []
    for path in paths:
        recipe = Recipe.load(path)
        tables = [dict(table) for table in recipe.cache]
        found.append(Row(THRIFTY, " → ".join(table["technique"] for table in tables), path.stem, _constant(tables)))
    return found


def _rows(name: str, shares: Sequence[float]) -> list[Row]:
    """By the first option of a budget that the technique has; one row of its defaults where it has none."""
    cls: Any = registry.load("cache", name)
    options = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if "keep" in options:
        return [_share(name, share, {"keep": share}) for share in shares]
    if {"heavy", "recent"} <= set(options):
        return [_share(name, share, {"heavy": share / 2, "recent": share / 2}) for share in shares]
    if "window" in options:
        sinks = options["sinks"].default if "sinks" in options else 0
        return [Row(THRIFTY, name, f"{share:.4g}", _window(name, share, sinks)) for share in shares]
    if "bits" in options:
        choices = sorted(_choices(cls, "bits"), reverse=True)
        return [Row(THRIFTY, name, f"{bits} bits", _constant([{"technique": name, "bits": bits}])) for bits in choices]
    return [Row(THRIFTY, name, "", _constant([{"technique": name}]))]


def _share(name: str, share: float, options: Table) -> Row:
    return Row(THRIFTY, name, f"{share:.4g}", _constant([{"technique": name, **options}]))


def _window(name: str, share: float, sinks: int) -> Callable[[int], list[Table]]:
    return lambda length: [{"technique": name, "window": max(1, int(share * length) - sinks)}]


def _constant(tables: list[Table]) -> Callable[[int], list[Table]]:
    return lambda length: tables


def _choices(cls: type, option: str) -> list[Any]:
    found: list[Any] = pydantic.TypeAdapter(cls).json_schema()["properties"][option].get("enum", [])
    return found


WINDOW = {"window_size": 32, "kernel_size": 7}
PRESSES: dict[str, Table] = {
    "streaming": {"press": "StreamingLLMPress"},
    "observed-attention": {"press": "ObservedAttentionPress", "attention": "eager"},
    "snapkv": {"press": "SnapKVPress"},
    "ada-kv": {"press": "AdaKVPress", "inner": "SnapKVPress"},
    "pyramidkv": {"press": "PyramidKVPress"},
    "kvzip": {"press": "KVzipPress"},
    "keydiff": {"press": "KeyDiffPress"},
    "tova": {"press": "TOVAPress"},
    "expected-attention": {"press": "ExpectedAttentionPress"},
}
"""kvpress's classes by the name that the method has, or would have, in Thrifty; with kvpress's own defaults. attention:
the implementation that a press needs. ObservedAttentionPress is related to H2O and another method: the mean of possible
queries' attention, no newest half, of the prompt alone."""
MATCHED: dict[str, tuple[Table, Table]] = {
    "streaming": ({"renumber": False}, {}),
    "snapkv": ({"pooling": "average"}, WINDOW),
    "ada-kv": ({"pooling": "average"}, WINDOW),
    "pyramidkv": ({"pooling": "average"}, {"window_size": 8, "kernel_size": 7}),
    "kvzip": ({"opening": False, "chunk": 2048}, {}),
}
"""Options with which Thrifty's method and the press are set alike: (Thrifty's, the press's), as far as the press has
them. kvpress pools by the mean alone."""
DEFAULTS, ALIKE = "defaults", "set alike"
PYRAMID_WINDOW, PYRAMID_BETA = 64, 20
"""Defaults of PyramidKVPress."""


def kvpress_rows(names: Sequence[str], shares: Sequence[float], length: int = 0) -> list[Row]:
    """kvpress without a press first, then every press whose name is among `names` at every share: with its defaults,
    and set as Thrifty's method where there is one. length: tokens of a prompt, for what a press does with so many.
    """
    rows = [Row(KVPRESS, "full", "", press={})]
    for name, press in PRESSES.items():
        if name not in names:
            continue
        settings: dict[str, Table] = {DEFAULTS: {}}
        if name in MATCHED:
            settings[ALIKE] = MATCHED[name][1]
        for setting, options in settings.items():
            for share in shares:
                made = {**press, "ratio": 1 - share, **({"options": options} if options else {})}
                falls = name == "pyramidkv" and length and falls_back(options, share, length)
                note = FALLBACK if falls else ""
                rows.append(Row(KVPRESS, name, f"{share:.4g}", press=made, setting=setting, note=note))
    return rows


def matched_rows(names: Sequence[str], shares: Sequence[float]) -> list[Row]:
    """Thrifty's rows that are set as a press can be."""
    rows = []
    for name, (options, _) in MATCHED.items():
        if name in names:
            alike = [_with(row, options) for row in _rows(name, shares)]
            rows += [dataclasses.replace(row, setting=ALIKE) for row in alike]
    return rows


FALLBACK = "the press gives up its pyramid at this budget and keeps what SnapKVPress keeps"


def falls_back(options: Mapping[str, Any], share: float, length: int) -> bool:
    """Whether PyramidKVPress keeps the same number in every layer: its own condition, with the window inside a layer's
    budget."""
    window = options.get("window_size", PYRAMID_WINDOW)
    least = length * share / options.get("beta", PYRAMID_BETA)
    most = length * share * 2 - least
    if most >= length - window:
        most = length - window
        least = length * share * 2 - most
    return not length >= most >= least >= window
