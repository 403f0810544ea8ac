"""Training an LSTM of characters from random weights, with the group lasso or without."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from thrifty.reference.arrays import tensor_of
from thrifty.training.iss.lstm import LSTM
from thrifty.training.iss.network import GroupLasso, Network
from thrifty.training.iss.recipe import Options, Text
from thrifty.training.loop.batches import Batches, cut
from thrifty.training.loop.checkpoint import Checkpoint
from thrifty.training.loop.loop import Plan, Say, train
from thrifty.training.loop.losses import next_tokens

CLIP = 5.0  # the largest norm of all gradients together (Zaremba et al., arXiv 1409.2329, medium model)


def train_lstm(text: Text, options: Options, *, folder: Path | None = None, say: Say = lambda progress: None) -> LSTM:
    """The trained LSTM with all of its units; those that the lasso took have groups of zeros: see `groups.living`.

    folder: where the state of the training is kept: one that was killed goes on from there, to the same bits.
    Raises RecipeError, and StorageError for a state that cannot be read or kept.
    """
    network = Network(text.characters, options.width, options.hidden, options.keep, options.seed)
    plan = Plan(options.steps, options.rate, warm_up=options.steps // 20, clip=CLIP, seed=options.seed)
    batches = Batches(cut(text.train.tolist(), options.length), options.batch, options.seed)
    lasso = GroupLasso(network, options.strength, plan.rate_at, options.threshold)

    def loss(step: int) -> Tensor:
        lasso.before()
        tokens = tensor_of(batches.at(step))
        return next_tokens(network(tokens), tokens)

    def after(step: int) -> None:
        if options.strength:
            lasso.after(step)

    checkpoint = Checkpoint.of(folder, "iss", _run(text, options))
    train(network.trained(), loss, plan, checkpoint=checkpoint, say=say, after=after)
    return network.as_arrays()


def _run(text: Text, options: Options) -> str:
    """All that decides what comes out."""
    digest = hashlib.sha256(text.train.tobytes() + text.characters.encode()).hexdigest()
    return str(sorted((asdict(options) | {"text": digest}).items()))
