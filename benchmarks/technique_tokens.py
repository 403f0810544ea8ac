"""The tokens of every technique on an embedded model, to hold two versions of the code against each other.

    python benchmarks/technique_tokens.py --model smollm2-135m --write tokens.json
    python benchmarks/technique_tokens.py --model smollm2-135m --against tokens.json

Every cache technique (at 30 % of the prompt, or at its bits) and a weight technique answer held-out prompts greedily;
the full cache also with seeds, penalties and a bias. --against names each answer that differs, with the place of its
first other token; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it finds its siblings

from benchmarks.cache_table.rows import thrifty_rows

from thrifty import registry
from thrifty.api import open_engine
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import RecipeError
from thrifty.evaluation.text import held_out
from thrifty.models.loading import load
from thrifty.recipe import Recipe

PROMPTS = (150, 700, 2100)
STEPS = 96
SAMPLED: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.8, "seed": 1},
    "top_k": {"temperature": 0.9, "top_k": 40, "seed": 2},
    "top_p": {"temperature": 1.1, "top_p": 0.9, "seed": 3},
    "min_p": {"temperature": 1.0, "min_p": 0.05, "seed": 4},
    "top_k, top_p, min_p": {"temperature": 0.7, "top_k": 60, "top_p": 0.95, "min_p": 0.02, "seed": 5},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    "penalties, sampled": {"temperature": 0.9, "repetition_penalty": 1.1, "frequency_penalty": 0.1, "seed": 6},
    "bias": {"logit_bias": {260: 3.0, 281: -100.0}},
    "logprobs": {"logprobs": 5},
}
Answers = dict[str, list[int]]


def answers(name: str, only: list[str] | None) -> Answers:
    """The tokens of each setting and prompt, by "setting, prompt length". only: of these cache techniques alone."""
    model = load(name)
    prompts = [held_out(model.tokenizer, length, place) for place, length in enumerate(PROMPTS)]
    engine = Engine(model, prefix_tree=False, prefill_slice_ms=0)
    found: Answers = {}
    try:
        for row in thrifty_rows(only or registry.names("cache"), [0.3]):
            label = f"{row.technique} {row.budget}".strip()
            try:
                for prompt in prompts:
                    found[f"{label}, {len(prompt)}"] = answer(engine, prompt, {}, row.tables(len(prompt)))
            except RecipeError as error:
                sys.stdout.write(f"{label} is left out: {error}\n")
        for label, options in () if only else SAMPLED.items():
            found[f"full with {label}, {len(prompts[0])}"] = answer(engine, prompts[0], options, [])
    finally:
        engine.close()
    return found if only else found | rounded(name, prompts[0])


def rounded(name: str, prompt: list[int]) -> Answers:
    """Of the one weight technique that needs no calibration."""
    found: Answers = {}
    for bits in (4, 8):
        recipe = Recipe(weights=[{"technique": "rtn", "bits": bits, "embedding_bits": bits}])
        engine = open_engine(name, recipe, prefix_tree=False, prefill_slice_ms=0)
        try:
            found[f"rtn {bits} bits, {len(prompt)}"] = answer(engine, prompt, {}, [])
        finally:
            engine.close()
    return found


def answer(engine: Engine, prompt: list[int], options: dict[str, Any], cache: list[dict[str, Any]]) -> list[int]:
    """The tokens of one answer."""
    sampling = SamplingParameters(max_tokens=STEPS, ignore_eos=True, **options)
    return list(engine.submit(Request(prompt=prompt, sampling=sampling, cache=cache)).result().token_ids)


def differences(before: Answers, after: Answers) -> list[str]:
    """A line for each answer that is not the same."""
    lines = [f"{label}: only in one of the two" for label in sorted(before.keys() ^ after.keys())]
    for label in before.keys() & after.keys():
        pairs = zip(before[label], after[label], strict=True)
        place = next((place for place, (old, new) in enumerate(pairs) if old != new), None)
        if place is not None:
            lines.append(f"{label}: token {place} was {before[label][place]} and is {after[label][place]}")
    return sorted(lines)


def main() -> int:
    """Answer, write or compare; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--write", type=Path, help="a file for the answers")
    parser.add_argument("--against", type=Path, help="a file that --write made")
    parser.add_argument("--only", help="names of cache techniques, with commas between them")
    arguments = parser.parse_args()
    found = answers(arguments.model, arguments.only.split(",") if arguments.only else None)
    if arguments.write is not None:
        arguments.write.write_text(json.dumps(found), encoding="utf-8")
    if arguments.against is None:
        return 0
    before = json.loads(arguments.against.read_text(encoding="utf-8"))
    lines = differences(
        {label: before[label] for label in found if label in before} if arguments.only else before, found
    )
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.write(f"{len(found) - len(lines)} of {len(found)} answers are the same, token for token\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
