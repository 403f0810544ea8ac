"""Trains the hybrid recall model: `python -m training.hybrid.train --out FOLDER`, some minutes on one core.

The task is associative recall (arXiv 2312.04927): a city and a word, again and again in random order; the word of a
city that was named before is an answer.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from thrifty.evaluation.tasks import _lists
from thrifty.evaluation.tasks._haystack import NAMES
from thrifty.reference.decoder import Decoder
from training.hybrid.network import HybridShape
from training.hybrid.words import BEGIN, SPACE, build_tokenizer
from training.recall.export import export
from training.recall.network import IGNORED, Batch, evaluate, parameters
from training.recall.wiring import first_weights

SMOOTHING = 0.9


@dataclass(frozen=True)
class Stage:
    """length: tokens of an example. sequences: of a step. facts: cities with a word, at most. goal: answers right, a
    running mean, that end the stage; most: steps that end it in any case."""

    length: int
    sequences: int
    facts: int
    goal: float = 0.97
    most: int = 10**9


STAGES = (
    Stage(32, 64, 4, goal=0.9),
    Stage(64, 32, 8, goal=0.9),
    Stage(128, 16, 16),
    Stage(256, 8, 32),
    Stage(512, 3, 40, goal=2.0),
)


class Writer:
    """Writes examples as token ids. All chance comes from the caller."""

    def __init__(self) -> None:
        numbers = build_tokenizer().get_vocab()
        self._begin = numbers[BEGIN]
        self._cities, self._words = ([numbers[SPACE + word] for word in words] for words in (NAMES, _lists.WORDS))

    def batch(self, stage: Stage, chance: random.Random) -> Batch:
        """The examples of one step."""
        examples = [self.example(stage, chance) for _ in range(stage.sequences)]
        tokens = torch.tensor([example for example, _ in examples])
        places = torch.arange(stage.length - 1).expand(stage.sequences, -1)
        answers = torch.tensor([marks for _, marks in examples])[:, 1:]
        targets = torch.where(answers, tokens[:, 1:], IGNORED)
        numbers = torch.where(answers, answers.flatten().cumsum(0).view_as(answers) - 1, -1)
        return Batch(tokens[:, :-1], places, targets, torch.ones(targets.shape), numbers)

    def example(self, stage: Stage, chance: random.Random) -> tuple[list[int], list[bool]]:
        """`length` token ids, and which of them are answers."""
        cities = chance.sample(self._cities, chance.randint(2, stage.facts))
        facts = {city: chance.choice(self._words) for city in cities}
        tokens, marks, told = [self._begin], [False], set()
        while len(tokens) < stage.length:
            city = chance.choice(cities)
            tokens += [city, facts[city]]
            marks += [False, city in told]
            told.add(city)
        return tokens[: stage.length], marks[: stage.length]


def train(steps: int, folder: Path, seed: int = 0, shape: HybridShape | None = None) -> float:
    """Train from random weights and write the model's directory; returns the answers right of late."""
    torch.manual_seed(seed)
    shape = HybridShape() if shape is None else shape
    decoder, writer = first_weights(shape, seed, None), Writer()
    trained = parameters(decoder)
    optimizer = torch.optim.AdamW(trained, lr=shape.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, shape.rate, total_steps=steps, pct_start=0.05)
    stage, since, late = 0, 0, 0.0
    for step in range(steps):
        loss, right = _update(decoder, writer.batch(STAGES[stage], random.Random(f"{seed}/{step}")), optimizer, trained)
        plan.step()
        late += max(1 - SMOOTHING, 1 / (step - since + 1)) * (right - late)
        if step % 20 == 0:
            print(f"step {step} length {STAGES[stage].length} loss {loss:.3f} right of late {late:.3f}", flush=True)
        passed = step - since >= 20 and late >= STAGES[stage].goal
        if stage + 1 < len(STAGES) and (passed or step - since >= STAGES[stage].most):
            stage, since = stage + 1, step + 1
    export(decoder, shape, build_tokenizer(), folder)
    return late


def _update(
    decoder: Decoder, batch: Batch, optimizer: torch.optim.Optimizer, trained: list[torch.nn.Parameter]
) -> tuple[float, float]:
    """One update of the weights; the loss and the share of answers that were right."""
    outcome = evaluate(decoder, batch)
    loss: Tensor = outcome.loss
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach()), outcome.right / max(1, outcome.answers)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1600)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train(given.steps, given.out)


if __name__ == "__main__":
    main()
