"""The benchmark of conversations: what is said turn after turn, and how scores are judged."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from benchmarks.conversations import Way, _answered, _judged

from thrifty.evaluation.tasks.multi_turn import MultiTurn
from thrifty.evaluation.tasks.task import Item, TaskTurn

END = 9
ANSWERS = (([5, END], " 12.\n77"), ([6, 7], " 13"), ([8, END], "none"))


@dataclass
class Said(Way):
    """A way whose answers are given. prompts: what it was told, turn by turn."""

    prompts: list[list[int]] = field(default_factory=list)

    def say(self, new: Sequence[int], answer: int, ignore_eos: bool = True) -> Any:
        assert not ignore_eos
        self.tokens += new
        self.prompts.append(list(self.tokens))
        tokens, text = ANSWERS[len(self.prompts) - 1]
        self.tokens += tokens
        return types.SimpleNamespace(token_ids=tokens, text=text)


def test_a_turn_stands_behind_the_answers_before_it_and_an_end_token_stands_once() -> None:
    engine: Any = types.SimpleNamespace(probe=lambda: types.SimpleNamespace(end_ids={END}))
    turns = tuple(TaskTurn(tokens, (wanted,)) for tokens, wanted in (((3,), "12"), ((END, 4), "13"), ((END, 4), "14")))
    item = Item("item", (1, 2), turns, 40)
    way = Said("full", engine, [], False, [])
    assert _answered(MultiTurn(golden=False), item, way) == [1.0, 1.0, 0.0]
    assert way.prompts == [[1, 2, 3], [1, 2, 3, 5, END, 4], [1, 2, 3, 5, END, 4, 6, 7, END, 4]]


def test_scores_are_judged_in_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {
        "full": [[1.0, 1.0]] * 4,
        "snapkv, pages on disk": [[1.0, 0.5]] * 4,
        "snapkv, session": [[1.0, 0.0]] * 3 + [[1.0, 1.0]],
    }
    told = _judged("snapkv, session", scores["snapkv, session"], scores)
    assert told["by_turn"] == [1.0, 0.25] and told["mean"]["value"] == pytest.approx(0.625)
    assert told["less full"]["value"] == pytest.approx(-0.375)
    assert told["less anew"]["value"] == pytest.approx(-0.125)
    assert told["less full"]["low"] == pytest.approx(-0.5) and told["less full"]["high"] <= 0.0
    assert "less full" not in _judged("full", scores["full"], scores)
    assert "less anew" not in _judged("snapkv, pages on disk", scores["snapkv, pages on disk"], scores)
    assert "snapkv, session" in capsys.readouterr().out
