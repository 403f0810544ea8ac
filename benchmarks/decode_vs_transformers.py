"""Decode speed against transformers (eager, bf16): same checkpoint, text and threads, alternating rounds.

    python benchmarks/decode_vs_transformers.py [--model smollm2-135m] [--prompt 128] [--steps 64]

Both feed the same tokens one at a time after the same prompt. A round in which other processes took more than
1 % of the CPU is void and repeated (--noisy counts it). A table first, one line of JSON last; the exit code is 1
where the ratio of medians is below --bar (5 unless given).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from thrifty.engine.engine import Engine
from thrifty.evaluation.forcing import force
from thrifty.evaluation.measuring.noise import LIMIT, listening
from thrifty.evaluation.text import held_out
from thrifty.models.loading import load, resolve

Round = Callable[[list[int], list[int]], list[float]]


def thrifty_round(engine: Engine) -> Round:
    """Seconds of every decode step of one round, by Thrifty."""

    def run(prompt: list[int], answer: list[int]) -> list[float]:
        return [step.seconds for step in force(engine, prompt, answer)][1:]

    return run


def transformers_round(checkpoint: Path) -> Round:
    """The same by transformers; a GGUF file's packed weights become bf16 when it is read."""
    model = transformers_model(checkpoint)

    @torch.inference_mode()
    def run(prompt: list[int], answer: list[int]) -> list[float]:
        past = model(torch.tensor([prompt]), use_cache=True).past_key_values
        seconds = []
        for token in answer[:-1]:
            before = time.perf_counter()
            past = model(torch.tensor([[token]]), past_key_values=past, use_cache=True).past_key_values
            seconds.append(time.perf_counter() - before)
        return seconds

    return run


def transformers_model(checkpoint: Path) -> Any:
    """Eager, bf16, by transformers' own reading of the file (`from_pretrained` wants accelerate for GGUF)."""
    from transformers import AutoConfig, AutoModelForCausalLM, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if checkpoint.is_dir():
        return AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.bfloat16, attn_implementation="eager"
        ).eval()
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(str(checkpoint.parent), gguf_file=checkpoint.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager")
    weights = load_gguf_checkpoint(str(checkpoint), return_tensors=True, model_to_load=model)["tensors"]
    missing, _ = model.load_state_dict(weights, strict=False)
    if set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"transformers found no values for {sorted(missing)}")
    model.tie_weights()
    return model.eval()


def main() -> int:
    """Run the comparison; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--noisy", action="store_true", help="count rounds that other processes disturbed")
    parser.add_argument("--bar", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.model, threads=options.threads)
    tokens = held_out(model.tokenizer, options.prompt + options.steps + 1)
    prompt, answer = tokens[: options.prompt], tokens[options.prompt :]
    engine = Engine(model, threads=options.threads, prefix_tree=False)
    runs = {"thrifty": thrifty_round(engine), "transformers": transformers_round(resolve(options.model))}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    void = 0
    for run in runs.values():
        run(prompt, answer)  # warm
    while len(seconds["thrifty"]) < options.rounds and void <= 2 * options.rounds:
        times = {}
        with listening() as noise:
            for name, run in runs.items():
                time.sleep(0.2)  # the other's threads park
                times[name] = statistics.median(run(prompt, answer))
        if noise.void and not options.noisy:
            void += 1
            continue
        for name, value in times.items():
            seconds[name].append(value)
    if not seconds["thrifty"]:
        raise SystemExit(f"all {void} rounds are void: other processes took more than {LIMIT:.0%} of the CPU")
    return report(options, seconds, void)


def report(options: argparse.Namespace, seconds: dict[str, list[float]], void: int) -> int:
    """Print the table and the JSON line."""
    rates = {name: 1 / statistics.median(found) for name, found in seconds.items()}
    ratio = rates["thrifty"] / rates["transformers"]
    print(f"{options.model}, {options.steps} tokens after {options.prompt}, {options.threads} threads")
    print(f"{'engine':<28}{'tokens/s':>10}{'slowest':>10}{'fastest':>10}")
    for name, found in seconds.items():
        label = "transformers (eager, bf16)" if name == "transformers" else "thrifty (as shipped)"
        print(f"{label:<28}{rates[name]:>10.1f}{1 / max(found):>10.1f}{1 / min(found):>10.1f}")
    print(f"ratio of medians {ratio:.2f}, the bar is {options.bar:g}")
    document = {
        "benchmark": "decode_vs_transformers",
        "model": options.model,
        "prompt": options.prompt,
        "steps": options.steps,
        "rounds": len(seconds["thrifty"]),
        "void_rounds": void,
        "noisy": options.noisy,
        "threads": options.threads,
        "thrifty_tok_s": round(rates["thrifty"], 2),
        "transformers_tok_s": round(rates["transformers"], 2),
        "ratio": round(ratio, 3),
    }
    print(json.dumps(document))
    return 0 if ratio >= options.bar else 1


if __name__ == "__main__":
    raise SystemExit(main())
