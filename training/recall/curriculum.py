"""What is practised when: short and few first, so that the habit of looking a key up forms in minutes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from training.recall.examples import PLAIN, Example, Writer, spread
from training.recall.network import IGNORED, Batch

TEXT_SHARE, TEXT_WEIGHT = 0.08, 0.1  # of tokens outside answers: how many are predicted, and what one counts
UNJUDGED_WEIGHT = 3.0  # what a token counts in the answers of the other kinds, which are few
MINIMUM = 40  # steps before a stage can be passed
JUDGED = ("drill", "recall")  # kinds whose answers end a stage
UNJUDGED = -2  # of a token: part of an answer of another kind


@dataclass(frozen=True)
class Stage:
    """length: tokens of an example. sequences: of a step, `at_once` at a time. keys: at most. mixture: kinds of
    examples with their shares. gaps: the share of examples whose positions are spread. goal: answers right that end
    the stage, most: steps that end it in any case.
    """

    length: int
    sequences: int
    keys: int
    mixture: Mapping[str, float]
    gaps: float = 0.0
    goal: float = 0.95
    most: int = 1500
    at_once: int = 64


BASICS = {"drill": 1.0}
EARLY = {"drill": 0.3, "recall": 0.7}
LATE = {"recall": 0.7, "tracing": 0.15, "aggregation": 0.1, "drill": 0.05}
STAGES = (
    Stage(64, 40, 3, BASICS, most=6000),
    Stage(128, 32, 6, EARLY, most=3000),
    Stage(256, 12, 12, LATE, gaps=0.4, goal=0.9),
    Stage(512, 8, 20, LATE, gaps=0.6, goal=0.9),
    Stage(1024, 6, 30, LATE, gaps=0.6, at_once=3, goal=0.9),
    Stage(2048, 4, 40, LATE, gaps=0.5, at_once=2, goal=0.9),
    Stage(4096, 2, 40, LATE, gaps=0.5, goal=2.0, most=10**9, at_once=1),
)


@dataclass(frozen=True)
class Plan:
    """The stages, the longest position, and the share of steps that go back to an earlier stage."""

    stages: tuple[Stage, ...] = STAGES
    context: int = 8192
    back: float = 0.7

    def stage_of(self, current: int, chance: random.Random) -> int:
        """The stage that a step practises: mostly the current one, else one before it of some length."""
        first = min(2, current)
        if current == first or chance.random() >= self.back:
            return current
        return chance.randrange(first, current)

    def batches(self, stage: Stage, writer: Writer, chance: random.Random, count: int) -> list[Batch]:
        """The batches of one step, `count` examples in all."""
        kinds, shares = list(stage.mixture), list(stage.mixture.values())
        examples = []
        for _ in range(count):
            (kind,) = chance.choices(kinds, shares)
            example = writer.write(kind, chance, stage.length + 1, stage.keys)
            if kind not in JUDGED:
                example.answers = [one if one == PLAIN else UNJUDGED for one in example.answers]
            gaps = chance.random() < stage.gaps
            positions = spread(chance, example, stage.length, self.context) if gaps else list(range(stage.length))
            examples.append((example, positions))
        parts = range(0, len(examples), stage.at_once)
        return [_batch(examples[start : start + stage.at_once], stage.length, writer, chance) for start in parts]


def _batch(examples: list[tuple[Example, list[int]]], length: int, writer: Writer, chance: random.Random) -> Batch:
    rows: list[tuple[list[int], ...]] = []
    told = 0
    for example, positions in examples:
        missing = length + 1 - len(example.tokens)
        tokens = example.tokens + [writer.end] * missing
        answers = [one + told if one >= 0 else one for one in example.answers] + [PLAIN] * missing
        told += example.count
        text = [chance.random() < TEXT_SHARE and place <= len(example.tokens) for place in range(1, length + 1)]
        wanted = [
            token if number != PLAIN or (picked and token != writer.unknown) else IGNORED
            for token, number, picked in zip(tokens[1:], answers[1:], text, strict=True)
        ]
        rows.append((tokens[:-1], positions, wanted, answers[1:]))
    tokens_, positions_, targets, numbers = (torch.tensor(column) for column in zip(*rows, strict=True))
    weights = torch.where(numbers == PLAIN, TEXT_WEIGHT, torch.where(numbers == UNJUDGED, UNJUDGED_WEIGHT, 1.0))
    return Batch(tokens_, positions_, targets, weights, numbers)
