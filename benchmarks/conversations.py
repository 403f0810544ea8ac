"""Conversations under compressing recipes: seconds to the first token of the last turn, and what is still recalled.

    python benchmarks/conversations.py [--model smollm2-135m] [--tokens 4096] [--turns 8] [--answer 128] [--rounds 3]
    python benchmarks/conversations.py --quality [--items 20] [--length 1500]

Speed: the same conversation with the full cache (prefix tree), with recipes that begin with pages on the disk (the
answers read again between turns, as the server does while nobody asks), with causal ones that share what they hold,
with sessions, and with nothing shared. Ways take turns, turn by turn; the figure is the median over the rounds, beside
its ratio to the full cache's; so are the seconds of the processor, which other programs disturb less.

Quality: questions over one context, turn after turn, each with its own answers before it: what the full cache finds,
what a recipe finds that compresses anew with every question, and what it finds going on from its compressed cache. A
mean comes with the 95 % interval of drawing the conversations anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request, Result
from thrifty.evaluation.recovery import mean_interval
from thrifty.evaluation.tasks.multi_turn import MultiTurn
from thrifty.evaluation.tasks.task import Item
from thrifty.models import load
from thrifty.models.model import Model

Tables = Sequence[Mapping[str, Any]]
Scores = list[list[float]]
"""[conversations][turns], each 0 to 1."""

RECIPES: dict[str, Tables] = {
    "kivi": [{"technique": "kivi", "bits": 4}],
    "streaming": [{"technique": "streaming", "window": 1020}],
    "snapkv": [{"technique": "snapkv", "keep": 0.5}],
}
CAUSAL = ("kivi", "streaming")
BOUND = "4GB"
ANSWER = 12
"""Most tokens of an answer whose number is read."""


@dataclass
class Way:
    """One way to hold a conversation, with an engine of its own. tokens: said so far."""

    name: str
    engine: Engine
    recipe: Tables
    session: bool
    tokens: list[int]
    processor: float = 0.0

    def say(self, new: Sequence[int], answer: int, ignore_eos: bool = True) -> Result:
        """A turn: `new` tokens behind all before them, and the answer. processor: seconds until its first token."""
        self.tokens += new
        sampling = SamplingParameters(max_tokens=answer, temperature=0.0, ignore_eos=ignore_eos)
        session = "conversation" if self.session else None
        request = Request(prompt=self.tokens, sampling=sampling, cache=self.recipe, session=session)
        began = time.process_time()
        handle = self.engine.submit(request)
        while not handle.usage.generated_tokens:
            self.engine.step()
        self.processor = time.process_time() - began
        result = handle.result()
        self.tokens += result.token_ids
        return result

    def rest(self) -> None:
        """What a server does while the user reads and writes."""
        while self.engine.read_ahead():
            while self.engine.busy:
                self.engine.step()


def ways(model: Model, threads: int | None, shared: bool) -> list[Way]:
    """All of them, each over the same weights. threads: of native code. shared: also those that share nothing."""
    found = [Way("full", Engine(model, threads=threads), [], False, [])]
    for name, recipe in RECIPES.items():
        if shared:
            found.append(
                Way(f"{name}, nothing shared", Engine(model, threads=threads, prefix_tree=False), recipe, False, [])
            )
        found.append(
            Way(f"{name}, pages on disk", Engine(model, threads=threads, conversation_disk=BOUND), recipe, False, [])
        )
        if name in CAUSAL:
            causal = [{**table, "causal": True} for table in recipe]
            found.append(Way(f"{name}, causal", Engine(model, threads=threads), causal, False, []))
        found.append(Way(f"{name}, session", Engine(model, threads=threads), recipe, True, []))
    return found


def speed(model: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the first token of the last turn, by way."""
    new = arguments.tokens // arguments.turns - arguments.answer
    if new < 1:
        raise SystemExit(f"--answer {arguments.answer} leaves no tokens to say; use less")
    seconds: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    held: dict[str, dict[str, int]] = {}
    for round_number in range(arguments.rounds):
        present = ways(model, arguments.threads, arguments.unshared)
        for turn in range(arguments.turns):
            part = [1000 + (31 * place + 977 * turn + 101 * round_number) % 20_000 for place in range(new)]
            for way in present:
                result = way.say(part, arguments.answer)
                if turn == arguments.turns - 1:
                    first = result.usage.queued_seconds + result.usage.prefill_seconds
                    seconds.setdefault(way.name, []).append(first)
                    processor.setdefault(way.name, []).append(way.processor)
                way.rest()
        for way in present:
            usage = way.engine.usage()
            held[way.name] = {
                "memory": usage.bytes_of("sessions") + usage.bytes_of("checkpoints") + usage.tree,
                "disk": usage.disk,
            }
            way.engine.close()
    base, work = statistics.median(seconds["full"]), statistics.median(processor["full"])
    table: dict[str, Any] = {}
    for name, own in seconds.items():
        middle, spent = statistics.median(own), statistics.median(processor[name])
        table[name] = {"first_token_s": round(middle, 3), "ratio": round(middle / base, 2)}
        table[name] |= {"processor_s": round(spent, 3), "processor_ratio": round(spent / work, 2), **held[name]}
        memory, disk = (held[name][place] / 1e6 for place in ("memory", "disk"))
        print(
            f"{name:28} {middle:7.3f} s {middle / base:6.2f} x  processor {spent:7.3f} s {spent / work:6.2f} x  "
            f"{memory:7.1f} MB in memory, {disk:7.1f} MB on disk"
        )
    return table


def quality(model: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """Share of numbers found, by way and turn."""
    task = MultiTurn(length=arguments.length, golden=False)
    scores: dict[str, list[list[float]]] = {}
    for number, item in enumerate(task.items(model.require_tokenizer(), arguments.items, seed=7)):
        print(f"\ritem {number + 1} of {arguments.items}", end="", file=sys.stderr, flush=True)
        for way in ways(model, arguments.threads, shared=False):
            scores.setdefault(way.name, []).append(_answered(task, item, way))
            way.engine.close()
    print(file=sys.stderr)
    return {name: _judged(name, own, scores) for name, own in scores.items()}


def _answered(task: MultiTurn, item: Item, way: Way) -> list[float]:
    """The score of each turn of one conversation. An answer ends at its end token, which the next turn's text brings
    along where the model's chat template has it.
    """
    ends = way.engine.probe().end_ids
    scores, new = [], list(item.prompt)
    for turn in item.turns:
        new += turn.tokens
        if way.tokens and way.tokens[-1] in ends and way.tokens[-1] == new[0]:
            way.tokens.pop()
        result = way.say(new, ANSWER, ignore_eos=False)
        scores.append(task.grade(item, turn, result.text.partition("\n")[0]))
        new = []
    return scores


def _judged(name: str, own: Scores, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Means with 95 % intervals (conversations are drawn anew), alone and less other ways' in pairs: the full cache's,
    and for a session those of the same recipe without one.
    """
    means = _means(own)
    told: dict[str, Any] = {
        "mean": mean_interval(means, block=1).as_dict(),
        "by_turn": [round(statistics.mean(column), 3) for column in zip(*own, strict=True)],
        "scores": own,
    }
    others = {"less full": "full", "less anew": f"{name.partition(',')[0]}, pages on disk"}
    for label, other in others.items():
        if other != name and (label == "less full" or name.endswith("session")):
            pairs = zip(means, _means(scores[other]), strict=True)
            told[label] = mean_interval([mine - its for mine, its in pairs], block=1).as_dict()
    figures = "  ".join(
        f"{label} {told[label]['value']:5.2f} ({told[label]['low']:.2f} to {told[label]['high']:.2f})"
        for label in ("mean", *others)
        if label in told
    )
    print(f"{name:28} {figures}  by turn {told['by_turn']}")
    return told


def _means(scores: Scores) -> list[float]:
    return [statistics.mean(turns) for turns in scores]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=4096, help="of the conversation, answers included")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--answer", type=int, default=128, help="tokens of every answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--unshared", action="store_true", help="also with nothing shared, for comparison")
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--length", type=int, default=1500)
    arguments = parser.parse_args()
    model = load(arguments.model, threads=arguments.threads)
    found = quality(model, arguments) if arguments.quality else speed(model, arguments)
    print(json.dumps({"settings": vars(arguments), "ways": found}))


if __name__ == "__main__":
    main()
