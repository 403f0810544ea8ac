"""Trains the recall model: `python -m training.recall.train --out FOLDER`; the same command goes on after a kill."""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from training.recall import checkpoint
from training.recall.checkpoint import Progress
from training.recall.curriculum import MINIMUM, Plan
from training.recall.examples import Writer
from training.recall.export import export
from training.recall.network import Shape, evaluate, parameters
from training.recall.team import Team, together
from training.recall.vocabulary import build_tokenizer
from training.recall.wiring import Wiring, first_weights

STATE = "state.safetensors"
LOG_SECONDS, SAVE_SECONDS = 10.0, 120.0
SMOOTHING = 0.95  # of the running share of right answers


@dataclass(frozen=True)
class Settings:
    """steps: in all; the rate rises over `warm_up`, stays, and falls to a twentieth over the last `decay` of them."""

    steps: int = 10_000
    warm_up: int = 60
    decay: int = 1000
    rate: float = 1e-3
    seed: int = 0
    wiring: Wiring | None = field(default_factory=Wiring)
    shape: Shape = field(default_factory=Shape)
    plan: Plan = field(default_factory=Plan)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        left = max(0.0, min(1.0, (self.steps - step) / max(1, self.decay)))
        falling = 0.05 + 0.95 * 0.5 * (1 - math.cos(math.pi * left))
        return self.rate * min(1.0, (step + 1) / max(1, self.warm_up)) * falling


class Training:
    """One run, or one process's part in it. A step depends on the seed, its number and the state before it alone."""

    def __init__(
        self, settings: Settings, folder: Path, note: Callable[[str], None] = print, team: Team | None = None
    ) -> None:
        self.settings, self.folder, self.note, self.team = settings, folder, note, team or Team()
        self.tokenizer = build_tokenizer(settings.shape.vocabulary)
        self.writer = Writer(self.tokenizer)
        self.decoder = first_weights(settings.shape, settings.seed, settings.wiring)
        self._trained = parameters(self.decoder)
        self._optimizer = torch.optim.AdamW(self._trained, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.progress = Progress()
        if (folder / STATE).exists():
            self.progress = checkpoint.restore(folder / STATE, self.decoder, self._optimizer)

    def run(self) -> None:
        """All steps that are left, then the exported model."""
        logged = saved = time.monotonic()
        while self.progress.step < self.settings.steps:
            started = time.monotonic()
            line = self.step()
            now = time.monotonic()
            self.progress.seconds += now - started
            if now - logged >= LOG_SECONDS:
                self.note(line + f" | {self.progress.tokens / self.progress.seconds:.0f} tokens/s")
                logged = now
            if now - saved >= SAVE_SECONDS:
                self.save()
                saved = now
        self.save()

    def step(self) -> str:
        """One update of the weights; a line about it."""
        progress, plan = self.progress, self.settings.plan
        chance = random.Random(f"training/{self.settings.seed}/{progress.step}")
        number = plan.stage_of(progress.stage, chance)
        stage = plan.stages[number]
        own = random.Random(f"training/{self.settings.seed}/{progress.step}/{self.team.rank}")
        batches = plan.batches(stage, self.writer, own, self.team.share(stage.sequences))
        loss, answers, right = 0.0, 0.0, 0.0
        for batch in batches:
            outcome = evaluate(self.decoder, batch)
            (outcome.loss / len(batches)).backward()
            loss += float(outcome.loss.detach()) / len(batches)
            answers, right = answers + outcome.answers, right + outcome.right
        loss, answers, right = self.team.total(loss / self.team.size, answers, right)
        self._update()
        progress.tokens += stage.length * stage.sequences
        if number == progress.stage and answers:
            self._judge(right / answers)
        return (
            f"step {progress.step} stage {progress.stage} length {stage.length} loss {loss:.3f} "
            f"right {right / max(1, answers):.3f} of late {progress.right:.3f} | {progress.seconds:.0f} s"
        )

    def _update(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.rate_at(self.progress.step)
        self.team.average_gradients(self._trained)
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.progress.step += 1

    def _judge(self, right: float) -> None:
        """Pass to the next stage where enough of the late answers are right, or its time is up."""
        progress, stage = self.progress, self.settings.plan.stages[self.progress.stage]
        spent = progress.step - progress.since
        weight = max(1 - SMOOTHING, 1 / max(1, spent))
        progress.right += weight * (right - progress.right)
        passed = spent >= MINIMUM and progress.right >= stage.goal
        if (passed or spent >= stage.most) and progress.stage + 1 < len(self.settings.plan.stages):
            self.note(f"stage {progress.stage} ends at step {progress.step} with {progress.right:.3f} right")
            progress.stage, progress.since, progress.right = progress.stage + 1, progress.step, 0.0

    def save(self) -> None:
        """The state to go on from, and the model as it is now; the first of a team writes."""
        if self.team.rank:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.folder / STATE, self.decoder, self._optimizer, self.progress)
        export(self.decoder, self.settings.shape, self.tokenizer, self.folder / "model")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    for name, kind in (("steps", int), ("decay", int), ("rate", float), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Settings, name))
    given = vars(parser.parse_args())
    together(given.pop("workers"), _work, given.pop("out"), Settings(**given))


def _work(team: Team, folder: Path, settings: Settings) -> None:
    torch.set_num_threads(1)
    Training(settings, folder, _tell if team.rank == 0 else _ignore, team).run()


def _tell(line: str) -> None:
    print(line, flush=True)


def _ignore(line: str) -> None:
    return None


if __name__ == "__main__":
    main()
