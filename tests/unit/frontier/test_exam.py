"""What recipes keep at the questions of a search."""

from __future__ import annotations

import dataclasses

from tests.tiny import ByteTokenizer

from thrifty.evaluation.tasks.task import Record
from thrifty.frontier.candidates import BASE, Candidate, Grid
from thrifty.frontier.exam import Exam, _key
from thrifty.frontier.state import SearchState
from thrifty.recipe import Recipe

KIVI = Candidate(Recipe(cache=[{"technique": "kivi", "bits": 2}]), Grid.SHIPPED)


def test_recovery_is_of_whole_contexts() -> None:
    """Twelve questions of two contexts, one lost and one kept: as two draws they may all be lost."""
    state = SearchState(None, {})
    exam = Exam(ByteTokenizer(), state, ["recall"], 12, 0)
    items = [dataclasses.replace(item, cluster=place % 2) for place, item in enumerate(exam._items["recall"])]
    exam._items["recall"] = items
    for candidate in (BASE, KIVI):
        for item in items:
            record = Record("recall", item.identity, float(candidate is BASE or item.cluster), "", 0.1)
            state.add("record", _key(candidate, "recall", item.identity), record.as_dict())
    recovery = exam.scores(KIVI, BASE)["recall"].recovery
    assert recovery is not None and (recovery.low, recovery.value, recovery.high) == (0.0, 0.5, 1.0)
