"""Filling in masks: the formulas of dimple, lavida and daedal against slow versions of what their papers write."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from thrifty import registry
from thrifty.decoding.canvas import RULES, Canvas, DenoisingStrategy, Guesses, guesses_of
from thrifty.decoding.draft import Draft
from thrifty.decoding.possible import Absent
from thrifty.decoding.sampling import Choice, Sampler
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.scores import ArrayScores
from thrifty.decoding.services import ModelFacts, Services
from thrifty.decoding.step_costs import StepCosts
from thrifty.decoding.strategies.daedal import FILLING, GROWING, Daedal, end_confidence
from thrifty.decoding.strategies.dimple import Dimple, scheduled
from thrifty.decoding.strategies.lavida import Lavida, shifted_counts
from thrifty.errors import PromptError, RecipeError, ThriftyError

VOCABULARY, MASK, END = 24, 20, 2
FACTS = ModelFacts(
    layers=2, vocabulary_size=VOCABULARY, end_ids=frozenset({END}), absent=Absent({MASK}), context=128, mask_id=MASK
)


def rows(count: int, seed: int = 0, scale: float = 2.0) -> Any:
    return (np.random.default_rng(seed).normal(size=(count + 1, VOCABULARY)) * scale).astype(np.float32)


def sampler(**options: Any) -> Sampler:
    return Sampler(SamplingParameters(**options), VOCABULARY, absent=FACTS.absent)


def guessed(canvas: Canvas, logits: Any, **options: Any) -> Guesses:
    return guesses_of(canvas, sampler(**options), ArrayScores(logits), FACTS)


def slow_chances(row: Any) -> list[float]:
    """Softmax without the mask, in Python."""
    weights = [0.0 if token == MASK else math.exp(float(value)) for token, value in enumerate(row)]
    return [weight / sum(weights) for weight in weights]


def test_the_four_rules_by_hand() -> None:
    logits, canvas = rows(9), Canvas.empty(9)
    guesses = guessed(canvas, logits)
    for place in range(9):
        chances = sorted(slow_chances(logits[place]), reverse=True)
        entropy = -sum(chance * math.log(chance) for chance in chances if chance)
        assert guesses.ranked("confidence")[place] == pytest.approx(chances[0])
        assert guesses.ranked("margin")[place] == pytest.approx(chances[0] - chances[1])
        assert guesses.ranked("entropy")[place] == pytest.approx(-entropy)
    numbers = guesses.ranked("random")
    assert len(set(numbers)) == 9 and numbers.min() >= 0 and numbers.max() < 1
    orders = {rule: tuple(guesses.best(np.arange(9), 9, rule)) for rule in RULES}
    assert len(set(orders.values())) == 4, "on these logits every rule has an order of its own"


def test_confidence_is_that_of_the_undistorted_distribution() -> None:
    """Temperature and truncation choose the token; they do not make it surer."""
    logits = rows(6, 3)
    guesses = guessed(Canvas.empty(6), logits, temperature=3.0, top_k=2, seed=5)
    for place, choice in enumerate(guesses.choices):
        assert choice is not None
        assert guesses.confidence[place] == pytest.approx(slow_chances(logits[place])[choice.token])


def test_a_mask_is_never_a_guess() -> None:
    logits = rows(4)
    logits[:, MASK] = 50.0
    assert all(choice is not None and choice.token != MASK for choice in guessed(Canvas.empty(4), logits).choices)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    logits = rows(4)
    logits[2, 5] = np.nan
    with pytest.raises(PromptError, match="position 2"):
        guessed(Canvas.empty(4), logits)


def slow_dimple(strategy: Dimple, masks: list[int], confidence: list[float], clock: int) -> tuple[list[int], int]:
    """Confident decoding as the paper and its code write it, for one sequence and the rule of confidence."""
    steps = strategy.steps or strategy.length
    sure = [place for place in masks if confidence[place] > strategy.threshold] if strategy.threshold else []
    if sure:
        return sure, clock + 1
    count = 0
    while count < 1:
        if clock >= steps - 1:
            return sorted(masks), steps
        t = 1 - (1 - 1e-3) * clock / steps
        s = 1 - (1 - 1e-3) * (clock + 1) / steps
        count, clock = int(len(masks) * (1 - s / t)), clock + 1
    return sorted(masks, key=lambda place: -confidence[place])[:count], clock


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("steps", [None, 5, 40])
def test_dimple_fills_in_what_the_paper_fills_in(threshold: float, steps: int | None) -> None:
    strategy = Dimple(length=17, threshold=threshold, steps=steps)
    canvas, passes = strategy.begin(), 0
    while len(canvas.masked):
        guesses = guessed(canvas, rows(17, passes))
        wanted, clock = slow_dimple(strategy, canvas.masked.tolist(), guesses.confidence.tolist(), canvas.clock)
        after = strategy.refine(canvas, guesses, 17)
        assert sorted(set(canvas.masked.tolist()) - set(after.masked.tolist())) == sorted(wanted)
        assert after.clock == clock and after.passes == canvas.passes + 1
        canvas, passes = after, passes + 1
    assert passes <= 17 and (passes > 1 or threshold == 0.25)
    if threshold == 0.0 and steps == 5:
        assert passes == 5


def test_the_last_step_of_the_schedule_takes_what_is_left() -> None:
    assert scheduled(9, 4, 5) == (5, 9) and scheduled(9, 7, 5) == (5, 9)
    assert scheduled(1, 0, 30) == (30, 1), "one place: no step before the last fills in a whole one"


@pytest.mark.parametrize("places", [1, 2, 9, 32, 63])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 50.0])
def test_lavidas_counts(places: int, ratio: float, shift: float) -> None:
    counts = shifted_counts(places, ratio, shift)
    assert sum(counts) == places and min(counts) >= 1 and len(counts) == max(1, int(places * ratio))
    steps = len(counts)
    exact = [shift * (i / steps) / (1 + (shift - 1) * (i / steps)) * places for i in range(steps + 1)]
    reversed_counts = counts[::-1]
    if all(int(exact[i + 1] + 1e-9) - int(exact[i] + 1e-9) >= 1 for i in range(steps)):
        assert reversed_counts == [int(exact[i + 1] + 1e-9) - int(exact[i] + 1e-9) for i in range(steps)]
    if shift > 1 and steps > 2 and places > steps:
        assert counts[0] <= counts[-1], "few places first, many later"


def test_lavida_takes_its_passes() -> None:
    strategy = Lavida(length=20, ratio=0.25)
    canvas, left = strategy.begin(), []
    while len(canvas.masked):
        before = canvas.masked
        guesses = guessed(canvas, rows(20, canvas.passes))
        canvas = strategy.refine(canvas, guesses, 20)
        gone = sorted(set(before.tolist()) - set(canvas.masked.tolist()))
        surest = sorted(before.tolist(), key=lambda place: -float(guesses.confidence[place]))[: len(gone)]
        assert gone == sorted(surest)
        left.append(len(gone))
    assert left == shifted_counts(20, 0.25, 3.0) and len(left) == 5


def certain(count: int, tokens: dict[int, int], strength: float = 8.0) -> Any:
    """Logits that are sure of these tokens at these places, and flat at others."""
    logits = np.zeros((count + 1, VOCABULARY), np.float32)
    for place, token in tokens.items():
        logits[place, token] = strength
    return logits


def slow_end_confidence(logits: Any, count: int, window: int) -> float:
    total = 0.0
    for place in range(max(0, count - window), count):
        chances = slow_chances(logits[place])
        if max(range(VOCABULARY), key=chances.__getitem__) == END:
            total += chances[END]
    return total / min(window, count)


def test_end_confidence_by_hand() -> None:
    logits = rows(12, 4)
    logits[7:10, END] += 6.0
    for window in (1, 4, 8, 30):
        guesses = guessed(Canvas.empty(12), logits)
        assert end_confidence(guesses, window) == pytest.approx(slow_end_confidence(logits, 12, window))


def test_daedal_grows_until_the_tail_has_ended() -> None:
    strategy = Daedal(initial=8, growth=4, length=18, window=4)
    unsure = certain(8, {})
    grown = strategy.refine(strategy.begin(), guessed(strategy.begin(), unsure), 18)
    assert len(grown.choices) == 12 and len(grown.masked) == 12 and grown.clock == GROWING
    grown = strategy.refine(grown, guessed(grown, certain(12, {})), 18)
    grown = strategy.refine(grown, guessed(grown, certain(16, {})), 18)
    assert len(grown.choices) == 18, "no more than the longest"
    filled = strategy.refine(grown, guessed(grown, certain(18, {})), 18)
    assert filled.clock == FILLING and len(filled.masked) == 17, "it can grow no more: the surest place is filled in"
    ended = strategy.refine(
        strategy.begin(), guessed(strategy.begin(), certain(8, {4: END, 5: END, 6: END, 7: END})), 18
    )
    assert ended.clock == FILLING and ended.masked.tolist() == [0, 1, 2, 3]


def test_daedal_widens_the_least_sure_place() -> None:
    strategy = Daedal(initial=8, growth=3, length=20, window=4, unsure=0.1, block=6)
    canvas = Canvas((None,) * 8, 1, FILLING)
    logits = certain(8, {0: 5, 1: 6})
    logits[3] -= np.linspace(0, 1e-3, VOCABULARY, dtype=np.float32)  # flat, and least sure but for those like it
    guesses = guessed(canvas, logits)
    after = strategy.refine(canvas, guesses, 20)
    assert [place for place, one in enumerate(after.choices) if one is not None] == [0, 1]
    assert len(after.choices) == 8 + 2
    marked = Canvas((None, None, None, None, Choice(9), None, None, None), 1, FILLING)
    guesses = guessed(marked, logits)
    least = min((2, 3, 5), key=lambda place: float(guesses.confidence[place]))
    after = strategy.refine(marked, guesses, 20)
    wanted: list[Choice | None] = [guesses.choices[0], guesses.choices[1], None, None, Choice(9), None, None, None]
    wanted[least:least] = [None, None]
    assert list(after.choices) == wanted
    assert len(strategy.refine(canvas, guesses, 9).choices) == 9, "as far as there is room"
    ended = certain(8, {0: 5, 1: 6, 4: END, 5: END, 6: END, 7: END}, 9.0)
    assert len(strategy.refine(canvas, guessed(canvas, ended), 20).choices) == 8, "the end is sure: nothing expands"


def test_daedal_fills_in_the_leftmost_block_alone() -> None:
    strategy = Daedal(initial=8, length=8, window=2, block=3)
    first = Choice(1)
    canvas = Canvas((first, None, None, None, None, None, None, None), 1, FILLING)
    after = strategy.refine(canvas, guessed(canvas, certain(8, dict.fromkeys(range(8), 5), 9.0)), 8)
    assert [place for place, one in enumerate(after.choices) if one is not None] == [0, 1, 2]


def test_a_first_length_above_the_longest_is_an_error() -> None:
    with pytest.raises(RecipeError, match="initial = 20"):
        Daedal(initial=20, length=10)
    with pytest.raises(RecipeError):
        registry.build("decoding", {"technique": "daedal", "initial": 20, "length": 10})


class Going:
    """A continuation of a few tokens."""

    def __init__(self, own: Sampler) -> None:
        self.tokens, self.sampler = [1, 5, 6], own


@pytest.mark.parametrize("strategy", [Dimple(length=9), Lavida(length=9), Daedal(initial=5, length=9)])
def test_a_drafter_commits_a_full_canvas_and_no_other(strategy: DenoisingStrategy) -> None:
    going, facts = Going(sampler()), FACTS
    drafter = strategy.open(Services(facts, going.sampler, {}, StepCosts()))
    for passes in range(30):
        draft = drafter.propose(going)
        assert draft.both_ways and draft == drafter.propose(going)
        scores = ArrayScores(rows(len(draft.tokens), passes))
        accepted = drafter.accept(going, draft, scores)
        assert accepted == drafter.accept(going, draft, scores), "asking twice changes nothing"
        if accepted.choices:
            break
        assert not accepted.path and MASK in draft.tokens
        drafter.go_on(accepted.unfinished)
    tokens = [choice.token for choice in accepted.choices]
    assert MASK not in draft.tokens and tuple(tokens[:-1]) == draft.tokens[: len(tokens) - 1]
    drafter.committed(tokens)
    assert MASK in drafter.propose(going).tokens


def test_an_answer_ends_at_its_first_end_token() -> None:
    strategy = Dimple(length=6, threshold=0.5)
    going = Going(sampler())
    drafter = strategy.open(Services(FACTS, going.sampler, {}, StepCosts()))
    logits = certain(6, {0: 7, 1: 8, 2: END, 3: 9, 4: END, 5: END})
    accepted = drafter.accept(going, drafter.propose(going), ArrayScores(logits))
    drafter.go_on(accepted.unfinished)
    accepted = drafter.accept(going, drafter.propose(going), ArrayScores(logits))
    assert [choice.token for choice in accepted.choices] == [7, 8, END] and accepted.path == (0, 1)


def test_a_canvas_that_the_engine_cuts_stays_cut() -> None:
    strategy = Daedal(initial=8, growth=4, length=20)
    going = Going(sampler())
    drafter = strategy.open(Services(FACTS, going.sampler, {}, StepCosts()))
    for passes in range(20):
        draft = drafter.propose(going).within(5)
        accepted = drafter.accept(going, draft, ArrayScores(rows(len(draft.tokens), passes)))
        if accepted.choices:
            break
        drafter.go_on(accepted.unfinished)
        assert len(drafter.propose(going).tokens) == 5
    assert len(accepted.choices) in range(1, 7)


def test_a_canvas_is_no_tree() -> None:
    with pytest.raises(ThriftyError, match="leave parents out"):
        Draft((1, 2), (-1, 0), both_ways=True)
    assert Draft((1, 2, 3), both_ways=True).within(2) == Draft((1, 2), both_ways=True)
