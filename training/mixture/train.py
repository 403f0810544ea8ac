"""Trains the small mixture of experts: `python -m training.mixture.train --out FOLDER`, some minutes on one core.

It learns the package's prose, word by word, so that what it knows lies in its experts.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from thrifty.evaluation.text import prose
from thrifty.reference.decoder import Decoder
from training.mixture.network import MixtureShape, imbalance, watched_routers
from training.recall.export import export
from training.recall.network import IGNORED, Batch, evaluate, parameters
from training.recall.vocabulary import BEGIN, UNKNOWN, build_tokenizer
from training.recall.wiring import first_weights

LENGTH, SEQUENCES = 256, 8  # tokens of an example, examples of a step
RATE, DECAY = 4e-3, 0.05  # of learning at its highest; of weights
BALANCE = 0.02  # weight of the loss that keeps experts in use
SMOOTHING = 0.95


class Reader:
    """Reads pieces of the prose at random places. ids: of the whole text. unknown: the id that is never a target."""

    def __init__(self, ids: Sequence[int], begin: int, unknown: int) -> None:
        self._ids, self._begin, self._unknown = torch.tensor(ids), begin, unknown

    def batch(self, chance: random.Random, sequences: int = SEQUENCES, length: int = LENGTH) -> Batch:
        """Pieces of `length` tokens, of which each next one is predicted; half of them begin with the mark of one."""
        starts = [chance.randrange(len(self._ids) - length) for _ in range(sequences)]
        tokens = torch.stack([self._ids[start : start + length + 1] for start in starts])
        tokens[::2, 0] = self._begin
        targets = tokens[:, 1:].masked_fill(tokens[:, 1:] == self._unknown, IGNORED)
        places = torch.arange(length).expand(sequences, -1)
        return Batch(tokens[:, :-1], places, targets, torch.ones(targets.shape), torch.full(targets.shape, -1))


def train(steps: int, folder: Path, seed: int = 0, shape: MixtureShape | None = None) -> float:
    """Train from random weights and write the model's directory; returns the loss of late, in nats a token."""
    torch.manual_seed(seed)
    shape = MixtureShape() if shape is None else shape
    tokenizer = build_tokenizer(shape.vocabulary)
    words = tokenizer.get_vocab()
    reader = Reader(tokenizer.encode(prose(), add_special_tokens=False).ids, words[BEGIN], words[UNKNOWN])
    decoder = first_weights(shape, seed, None)
    trained = parameters(decoder)
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.98), weight_decay=DECAY, fused=True)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.08)
    late = 0.0
    for step in range(steps):
        loss, uneven = _update(decoder, reader.batch(random.Random(f"{seed}/{step}")), optimizer, trained)
        plan.step()
        late += max(1 - SMOOTHING, 1 / (step + 1)) * (loss - late)
        if step % 20 == 0:
            print(f"step {step} loss {loss:.3f} of late {late:.3f} imbalance {uneven:.3f}", flush=True)
        if step % 200 == 199:
            export(decoder, shape, tokenizer, folder)
    export(decoder, shape, tokenizer, folder)
    return late


def _update(
    decoder: Decoder, batch: Batch, optimizer: torch.optim.Optimizer, trained: list[torch.nn.Parameter]
) -> tuple[float, float]:
    """One update of the weights; the loss in nats a token, and how unevenly experts are used (1: all alike)."""
    experts = decoder.config.experts
    assert experts is not None, "the model has experts"
    with watched_routers(decoder) as scores:
        predicted: Tensor = evaluate(decoder, batch).loss
    uneven = torch.stack([imbalance(own, experts.active) for own in scores]).mean() / experts.active
    (predicted + BALANCE * uneven).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(predicted.detach()), float(uneven.detach())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train(given.steps, given.out)


if __name__ == "__main__":
    main()
