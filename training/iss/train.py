"""Trains an LSTM of characters with the group lasso: `python -m training.iss.train --out FOLDER`; see README.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from thrifty import extras
from thrifty.errors import StorageError, ThriftyError
from thrifty.evaluation.text import prose
from thrifty.training.iss.groups import living, with_units
from thrifty.training.iss.recipe import Options, Text

SCORED, PASSAGES = 128, 64  # characters of a held-out passage; how many at most


def run(folder: Path, options: Options, path: Path | None = None, every: int = 20) -> dict[str, Any]:
    """Train, write both models and return the figures: hidden sizes, products of a token, perplexity of a character.

    path: a text instead of the package's prose. every: steps between lines of progress, 0: none. Raises ThriftyError.
    """
    extras.require_torch("training recipe 'iss'")
    from thrifty.training.iss.training import train_lstm
    from thrifty.training.loop.loop import Progress

    def say(progress: Progress) -> None:
        if every and (progress.step % every == 0 or progress.step == progress.steps):
            print(
                f"step {progress.step}/{progress.steps} loss {progress.loss:.3f}, {progress.seconds_left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    text = Text.of(prose() if path is None else _read(path))
    passages = text.passages(SCORED, PASSAGES)
    dense = train_lstm(text, options, folder=folder, say=say)
    small = with_units(dense, living(dense))
    dense.save(folder / "dense.safetensors")
    small.save(folder / "small.safetensors")
    loss = float(np.mean([small.losses(passage).mean() for passage in passages]))
    return {
        "hidden": list(dense.hidden),
        "living": list(small.hidden),
        "multiply_adds": dense.multiply_adds,
        "living_multiply_adds": small.multiply_adds,
        "held_out_loss_nats": loss,
        "held_out_perplexity": float(np.exp(loss)),
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read the text '{path}': {error}; give a file of UTF-8 text") from error


def main(words: list[str] | None = None) -> int:
    """The command line; its exit code."""
    default = Options()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--hidden", type=int, nargs="+", default=list(default.hidden), help="units of each layer")
    for name in ("strength", "threshold", "keep", "rate"):
        parser.add_argument(f"--{name}", type=float, default=getattr(default, name))
    for name in ("width", "steps", "length", "batch", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    given = vars(parser.parse_args(words))
    folder, path, as_json = given.pop("out"), given.pop("text"), given.pop("json")
    try:
        found = run(folder, Options(**given | {"hidden": tuple(given["hidden"])}), path)
    except ThriftyError as error:
        print(
            json.dumps({"error": str(error)}) if as_json else f"error: {error}",
            file=sys.stdout if as_json else sys.stderr,
        )
        return 1
    print(json.dumps(found) if as_json else "\n".join(f"{name}: {value}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
