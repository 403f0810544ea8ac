"""Trains the small masked-diffusion model and its twin: `python -m training.diffusion.train --out FOLDER`.

First both are one model, which predicts the next token (Dimple's first stage); then it goes two ways, for as many
steps on the same examples. The same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from thrifty.evaluation.letters import draw
from thrifty.models.model import random_model
from thrifty.reference.decoder import Decoder
from thrifty.reference.loading import build
from training.diffusion.network import Batch, DiffusionShape, Example, causal_batch, diffusion_batch, loss_of
from training.diffusion.words import BEGIN, END, MASK, UNKNOWN, build_tokenizer
from training.recall import checkpoint
from training.recall.checkpoint import Progress

LOG_SECONDS, SAVE_SECONDS = 20.0, 60.0
SMOOTHING = 0.98


@dataclass(frozen=True)
class Settings:
    """first, second: steps of the shared stage and of each one's own. examples: of a step; masks are shown twice."""

    first: int = 500
    second: int = 1300
    examples: int = 48
    rate: float = 3e-3
    warm_up: int = 60
    seed: int = 0
    complementary: bool = True

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step of a stage: it rises, and falls to a twentieth by half a cosine."""
        falling = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps))
        return self.rate * min(1.0, (step + 1) / self.warm_up) * falling


class Stage:
    """One stage of training. A step depends on the seed, its number and the weights before it alone."""

    def __init__(self, name: str, decoder: Decoder, settings: Settings, steps: int, folder: Path) -> None:
        self.name, self.decoder, self.settings, self.steps = name, decoder, settings, steps
        self._path = folder / f"{name}.state.safetensors"
        self._trained = [one for one in decoder.parameters() if one.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self._tokenizer = build_tokenizer()
        self.progress = Progress()
        if self._path.exists():
            self.progress = checkpoint.restore(self._path, decoder, self._optimizer)

    def run(self) -> None:
        """All steps that are left."""
        logged = saved = time.monotonic()
        late = self.progress.right
        while self.progress.step < self.steps:
            started = time.process_time()
            loss = self._step()
            late += max(1 - SMOOTHING, 1 / self.progress.step) * (loss - late)
            self.progress.seconds += time.process_time() - started
            self.progress.right = late
            now = time.monotonic()
            if now - logged > LOG_SECONDS:
                seconds, tokens = self.progress.seconds, self.progress.tokens
                line = f"{self.name} step {self.progress.step}/{self.steps} loss {loss:.3f} of late {late:.3f}"
                print(f"{line} | {seconds:.0f} s of CPU, {tokens / seconds:.0f} tokens/s", flush=True)
                logged = now
            if now - saved > SAVE_SECONDS:
                self._save()
                saved = now
        self._save()

    def _step(self) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.rate_at(self.progress.step, self.steps)
        batch = self._batch()
        loss = loss_of(self.decoder, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.progress.step += 1
        self.progress.tokens += batch.tokens.numel()
        return float(loss.detach())

    def _batch(self) -> Batch:
        """The examples of both second stages are the same."""
        stage = "first" if self.name == "first" else "second"
        chance = random.Random(f"{stage}/{self.settings.seed}/{self.progress.step}")
        examples = [self._example(chance) for _ in range(self.settings.examples)]
        if self.name in ("first", "twin"):
            return causal_batch(examples)
        return diffusion_batch(examples, DiffusionShape(True), chance, self.settings.complementary)

    def _example(self, chance: random.Random) -> Example:
        item = draw(chance, held_out=False)
        words = self._tokenizer.get_vocab()
        prompt = [words[BEGIN], *self._tokenizer.encode(item.prompt, add_special_tokens=False).ids]
        answer = [words[f"\u2581{letter}"] for letter in item.answer(chance)]
        return Example(prompt, [*answer, words[END]])

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self._path, self.decoder, self._optimizer, self.progress)


def train(folder: Path, settings: Settings) -> None:
    """Both models, each a directory in `folder`: `diffusion` and `twin`."""
    torch.manual_seed(settings.seed)
    first = _fresh(settings.seed)
    Stage("first", first, settings, settings.first, folder).run()
    for name in ("diffusion", "twin"):
        decoder = _fresh(settings.seed)
        decoder.load_state_dict(first.state_dict())
        Stage(name, decoder, settings, settings.second, folder).run()
        export(decoder, DiffusionShape(name == "diffusion"), build_tokenizer(), folder / name)


def _fresh(seed: int) -> Decoder:
    """Random weights; what a layer adds begins small."""
    shape = DiffusionShape(False)
    decoder = build(random_model(shape.config(), seed, scale=0.02)).decoder
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith((".output.weight", ".mlp.down.weight")):
                parameter.div_(math.sqrt(2 * shape.layers))
    return decoder


def export(decoder: Decoder, shape: DiffusionShape, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, tokenizer.json, tokenizer_config.json and model.safetensors in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": BEGIN, "eos_token": END, "unk_token": UNKNOWN, "mask_token": MASK, "add_bos_token": True}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(shape.published(), indent=1) + "\n")
    tensors = {shape.tensor_name(name): value.detach().to(torch.bfloat16) for name, value in decoder.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    for name in ("first", "second", "examples", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Settings, name))
    parser.add_argument("--rate", type=float, default=Settings.rate)
    parser.add_argument("--independent", action="store_true", help="draw the second masks anew: not complementary")
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    folder, independent = given.pop("out"), given.pop("independent")
    train(folder, Settings(**given, complementary=not independent))


if __name__ == "__main__":
    main()
