"""The space that `fit` searches: weights × cache × decoding, so that bits are shared out between weights and cache."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from thrifty.frontier.candidates import BASE, OFF_GRID_BASE, Candidate, Grid, Table
from thrifty.frontier.made_weights import EIGHT, FEWER, FOUR
from thrifty.recipe import Recipe

PAGE = 64  # tokens; evicting whole pages leaves no holes

RTN_8: Table = {"technique": "rtn", "bits": 8}
RTN_4: Table = {"technique": "rtn", "bits": 4}
RTN_4_WHOLE: Table = {"technique": "rtn", "bits": 4, "embedding_bits": 4}
RTN_4_COARSE: Table = {"technique": "rtn", "bits": 4, "group": 128, "embedding_bits": 4}
RTN_4_MIDDLE: Table = {"technique": "rtn", "bits": 4, "group": 64, "symmetric": True}
HEAD_4: Table = {"technique": "rtn", "skip": ["layers.*", "embedding"], "embedding_bits": 4}
EMBEDDING_4: Table = {"technique": "rtn", "skip": ["layers.*"], "embedding_bits": 4}
KIVI_8: Table = {"technique": "kivi", "bits": 8}
KIVI_4: Table = {"technique": "kivi", "bits": 4}
KIVI_2: Table = {"technique": "kivi", "bits": 2}
KIVI_2_FINE: Table = {"technique": "kivi", "bits": 2, "group": 16}
KVZIP_HALF: Table = {"technique": "kvzip", "keep": 0.5}
KVZIP_QUARTER: Table = {"technique": "kvzip", "keep": 0.25}
KVMERGER_HALF: Table = {"technique": "kvmerger", "keep": 0.5}
FASTGEN: Table = {"technique": "fastgen", "recovery": 0.95}

BUDGETS = {
    "streaming": "window",
    "snapkv": "capacity",
    "ada-kv": "capacity",
    "pyramidkv": "capacity",
    "h2o": "capacity",
    "headkv": "capacity",
}
"""The option of an evicting technique that holds a number of the prompt's tokens."""
SHARES = {"kvzip": "keep", "kvmerger": "keep", "fastgen": "recovery"}
"""The option of a technique that knows shares alone: short prompts are compressed as well as long ones."""

Stage = tuple[Table, ...]


def space(prefix: int, *, untied: bool = False) -> list[Candidate]:
    """The servable candidates, those that share weights together, the uncompressed model first.

    prefix: tokens that the last measurement compresses. What evicts keeps a share of them, as a number of tokens and
    not as a share, so that a recipe leaves short prompts whole. untied: whether logits have a matrix of their own,
    which then may be narrowed alone: a token reads all of it, and of the embedding one row.
    """
    return [
        Candidate(_recipe(weights, cache, decoding), Grid.ON if weights else Grid.SHIPPED)
        for weights, caches in _joint(prefix, untied)
        for cache, decoding in itertools.product(caches, decodings())
    ]


def decodings() -> list[Stage]:
    """Settings of the decoding stage: what is searched there changes speed alone. Today one: token by token."""
    return [()]


def off_grid() -> list[Candidate]:
    """What weight techniques cost where the checkpoint does not lie on their grid, the baseline first."""
    return [Candidate(_recipe(weights, ()), Grid.OFF) for weights in ((), (RTN_8,), (RTN_4,), (RTN_4_COARSE,))]


def _joint(prefix: int, untied: bool) -> list[tuple[Stage, list[Stage]]]:
    """Weights, each with the caches that it is tried with: coarser weights also with the small caches that leave room
    for finer ones elsewhere; weights that save nothing on most checkpoints with a few caches only.
    """
    caches = _caches(prefix)
    few: list[Stage] = [(), (KIVI_8,), (KIVI_4,), (KIVI_2_FINE,), (KIVI_2,)]
    head: list[tuple[Stage, list[Stage]]] = [((HEAD_4,), few)] if untied else []
    return [
        ((), caches),
        *head,
        ((EMBEDDING_4,), caches),
        ((RTN_4_COARSE,), caches),
        ((RTN_4_MIDDLE,), [*few, *caches[-4:]]),
        ((RTN_4_WHOLE,), few),
        ((RTN_4,), few[1:]),
        ((RTN_8,), few[1:]),
        *((weights, few[:3]) for weights in _made()),
    ]


def _made() -> list[Stage]:
    """Weights of the other techniques: the coarser they are, the narrower the output matrix beside them."""
    whole = [(table,) for table in (*EIGHT, *FOUR)]
    return [*whole, *((table, EMBEDDING_4) for table in (*FOUR, *FEWER))]


def _caches(prefix: int) -> list[Stage]:
    half, quarter, eighth = (max(PAGE, prefix // part // PAGE * PAGE) for part in (2, 4, 8))
    evicting: list[Stage] = [(_evict(name, tokens),) for name in BUDGETS for tokens in (half, quarter)]
    sharing: list[Stage] = [(KVZIP_HALF,), (KVZIP_QUARTER,), (KVMERGER_HALF,), (FASTGEN,)]
    composed: list[Stage] = [
        (KVZIP_HALF, KIVI_4),
        (_evict("headkv", half), KIVI_4),
        (_evict("pyramidkv", half), KIVI_4),
        (_evict("snapkv", half), KIVI_2_FINE),
        (_evict("snapkv", half), KIVI_4),
        (_evict("ada-kv", half), KIVI_4),
        (_evict("streaming", half), KIVI_4),
        (_evict("streaming", quarter), KIVI_4),
        (_evict("snapkv", half), KIVI_2),
        (_evict("ada-kv", quarter), KIVI_2),
        (_evict("snapkv", eighth), KIVI_4),
    ]
    return _unique([(), (KIVI_8,), (KIVI_4,), (KIVI_2_FINE,), (KIVI_2,), *evicting, *sharing, *composed])


def _evict(name: str, tokens: int) -> Table:
    return {"technique": name, BUDGETS[name]: tokens}


def _unique(stages: Iterable[Stage]) -> list[Stage]:
    """Short prefixes make shares equal."""
    distinct: list[Stage] = []
    for stage in stages:
        if stage not in distinct:
            distinct.append(stage)
    return distinct


def shortened(candidate: Candidate, share: float) -> Candidate:
    """The candidate for a prefix of `share` of the full one: what it keeps in tokens shrinks likewise, to whole pages,
    so that a short run compresses as much as the full one would.
    """
    if share >= 1:
        return candidate
    cache = [_shortened(table, share) for table in candidate.recipe.cache]
    return Candidate(dataclasses.replace(candidate.recipe, cache=cache), candidate.grid)


def _shortened(table: Table, share: float) -> Table:
    option = BUDGETS.get(str(table["technique"]))
    if option is None or not isinstance(table.get(option), int):
        return table
    return table | {option: max(PAGE, round(table[option] * share / PAGE) * PAGE)}


def _recipe(weights: Sequence[Table], cache: Sequence[Table], decoding: Sequence[Table] = ()) -> Recipe:
    stages = {"weights": weights, "cache": cache, "decoding": decoding}
    return Recipe.from_document({name: [dict(table) for table in tables] for name, tables in stages.items()})


def split(candidates: Iterable[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Servable candidates, the baseline first, and off-grid ones, likewise; of equal ones the last."""
    distinct = {BASE.key: BASE} | {candidate.key: candidate for candidate in candidates}
    servable = [candidate for candidate in distinct.values() if candidate.servable]
    aside = [candidate for candidate in distinct.values() if not candidate.servable]
    if aside and aside[0].key != OFF_GRID_BASE.key:
        aside = [OFF_GRID_BASE, *(candidate for candidate in aside if candidate.key != OFF_GRID_BASE.key)]
    return servable, aside
