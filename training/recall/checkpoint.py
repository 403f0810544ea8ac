"""The state of a training run on disk: one safetensors file, replaced whole."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from thrifty.reference.decoder import Decoder

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """step: done so far. stage: of the curriculum; since: the step at which it began. right: answers right in this
    stage, a running mean. tokens, seconds: spent.
    """

    step: int = 0
    stage: int = 0
    since: int = 0
    right: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


def save(path: Path, decoder: Decoder, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write weights, moments and progress; a kill leaves the old file or the new one."""
    tensors = {}
    for name, parameter in decoder.named_parameters():
        tensors[name] = parameter.detach()
        for moment in MOMENTS:
            if moment in optimizer.state[parameter]:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"progress": json.dumps(asdict(progress))})
    os.replace(partial, path)


def restore(path: Path, decoder: Decoder, optimizer: torch.optim.Optimizer) -> Progress:
    """Read what `save` wrote into a decoder and its optimizer. Raises what safetensors raises for a damaged file."""
    with safe_open(path, "pt") as file:
        progress = Progress(**json.loads(file.metadata()["progress"]))
        for name, parameter in decoder.named_parameters():
            parameter.data.copy_(file.get_tensor(name))
            if f"{MOMENTS[0]}/{name}" in file.keys():  # noqa: SIM118
                state = optimizer.state[parameter]
                state["step"] = torch.tensor(float(progress.step))
                for moment in MOMENTS:
                    state[moment] = file.get_tensor(f"{moment}/{name}")
    return progress
