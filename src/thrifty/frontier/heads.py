"""What some techniques must know of a model before any prompt: the scores of its heads, measured once a model and kept
beside its checkpoint, where a search finds none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from thrifty.errors import StorageError, ThriftyError
from thrifty.evaluation.heads.probe import probe
from thrifty.models.head_scores import find, save

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.frontier.state import SearchState
    from thrifty.models.model import Model

KIND = "heads"  # of what a search's state keeps


def unscored(model: Model, state: SearchState, kinds: Iterable[str]) -> list[str]:
    """The kinds that nobody measured yet, and of which the state does not say that the model cannot be scored."""
    reasons = without_scores(model, state, kinds)
    return [kind for kind in kinds if find(model, kind) is None and kind not in reasons]


def without_scores(model: Model, state: SearchState, kinds: Iterable[str]) -> dict[str, str]:
    """Why there are no scores, by the kinds of which the state says so."""
    held = {kind: state.find(KIND, kind) for kind in kinds if find(model, kind) is None}
    return {kind: str(values["reason"]) for kind, values in held.items() if values is not None and values["reason"]}


def score(engine: Engine, state: SearchState, kind: str, check: Callable[[], None]) -> None:
    """Measure and save the scores of one kind, or keep the reason why the model cannot be scored. check: called after
    every question, to raise where the time is over. Raises StorageError where they cannot be kept.
    """
    began, reason = time.perf_counter(), ""
    try:
        save(engine.model, probe(engine, kind, step=check))
    except StorageError:
        raise
    except ThriftyError as error:
        reason = str(error)
    state.add(KIND, kind, {"seconds": time.perf_counter() - began, "reason": reason})


def seconds(state: SearchState, kind: str) -> float:
    """What measuring the scores of a kind took in this search, 0 where they were there before."""
    held = state.find(KIND, kind)
    return 0.0 if held is None else float(held["seconds"])
