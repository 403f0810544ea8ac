"""What prompt programs save and cost: seconds to the first token, memory and recall against the whole prompt.

    python benchmarks/prompt_programs.py smollm2-135m --length 4096 --keep 0.125 --items 8
    python benchmarks/prompt_programs.py qwen2.5-coder-1.5b --draft qwen2.5-coder-0.5b --length 8192 --threads 2

Every program beside the whole prompt, SnapKV with as many slots and random tokens. Seconds: a prompt of prose to its
first token, all passes and the draft model's work included, median of rounds in which the ways take turns; a round in
which other processes took more than 1 % of the machine is marked. Memory: the ledger's peak while one such prompt is
read, without the weights of the model itself, but with all of the model that drafts. Recall: numbers hidden in prose
that are named, items of the judged half, by where the question stands (`QUESTIONS`); the interval is 95 %. Without
--draft the model drafts for itself: what a draft can tell at best, and its time at worst. A table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from thrifty.claims.harness.prompting import QUESTIONS, ProgrammedEngine
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.drafting.models import load_draft
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.evaluation import tasks
from thrifty.evaluation.measuring.noise import LIMIT, listening
from thrifty.evaluation.paired import Clustered, mean_interval
from thrifty.evaluation.text import held_out
from thrifty.models.loading import load
from thrifty.models.model import Model

SEED = 0
MEGABYTE = 1e6
Tables = list[dict[str, Any]]


@dataclass(frozen=True)
class Way:
    """How a prompt is read: tables of programs and of cache techniques."""

    name: str
    programs: Tables = field(default_factory=list)
    cache: Tables = field(default_factory=list)


@dataclass
class Row:
    """What came of a way. seconds: one a round. memory: bytes. recall: by the question's place (share, low, high)."""

    name: str
    kept: int = 0
    memory: int = 0
    draft_memory: int = 0
    seconds: list[float] = field(default_factory=list)
    recall: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    disturbed: int = 0


def main() -> int:
    """Measure and print."""
    arguments = parse()
    model = load(arguments.model)
    ways = chosen(arguments, model)
    rows = {way.name: Row(way.name) for way in ways}
    with closing(engine_of(arguments, model)) as engine:
        for way in ways:  # what drafts is loaded before anything is timed
            first_token(engine, way, held_out(model.require_tokenizer(), 256))
        tokens = held_out(model.require_tokenizer(), arguments.length)
        time_rounds(engine, ways, tokens, rows, arguments.rounds)
        for way in ways:
            rows[way.name].recall = recall(engine, way, model, arguments)
            sys.stderr.write(f"{way.name}: {rows[way.name].recall}\n")
    for way in ways:
        weigh(way, tokens, rows[way.name], arguments, model)
    show(list(rows.values()), arguments)
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft", help="the model that drafts; without it the model itself")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a prompt that is timed and weighed")
    parser.add_argument("--asked", type=int, help="tokens of a prompt that is asked about (default: --length)")
    parser.add_argument("--keep", type=float, default=0.125, help="share of the prompt")
    parser.add_argument("--items", type=int, default=16, help="questions of each kind")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layer", type=int, help="gemfilter's; without it the default")
    parser.add_argument("--lookahead", type=int, default=16, help="speckv's")
    parser.add_argument("--first-layer", type=int, help="specpc's; without it 8, or a third of the draft's layers")
    parser.add_argument("--ways", help="names, with commas between; all without it")
    return parser.parse_args()


def chosen(arguments: argparse.Namespace, model: Model) -> list[Way]:
    """The ways that are asked for, the whole prompt always."""
    draft, keep = arguments.draft or arguments.model, arguments.keep
    layers = len((load(arguments.draft) if arguments.draft else model).config.layers)
    first = min(8, layers // 3) if arguments.first_layer is None else arguments.first_layer
    layer = {} if arguments.layer is None else {"layer": arguments.layer}
    ways = [
        Way("whole prompt"),
        Way("gemfilter", [{"technique": "gemfilter", "keep": keep, **layer}]),
        Way("specpc", [{"technique": "specpc", "keep": keep, "draft": draft, "first_layer": first}]),
        Way("speckv", [{"technique": "speckv", "keep": keep, "draft": draft, "lookahead": arguments.lookahead}]),
        Way("snapkv", [], [{"technique": "snapkv", "keep": keep}]),
        Way("random tokens", [{"technique": "random-tokens", "keep": keep}]),
    ]
    wanted = None if arguments.ways is None else {"whole prompt", *arguments.ways.split(",")}
    return [way for way in ways if wanted is None or way.name in wanted]


def engine_of(arguments: argparse.Namespace, model: Model) -> Engine:
    """An engine without a prefix tree, with the model that drafts allowed."""
    own = arguments.draft is None

    def load_model(name: str, fits: Any) -> Model:
        return model if own else load_draft(name, fits)

    draft = arguments.draft or arguments.model
    return Engine(
        model, threads=arguments.threads, prefix_tree=False, drafts=(draft,), load_draft=load_model, prefill_slice_ms=0
    )


def first_token(engine: Engine, way: Way, tokens: Sequence[int]) -> tuple[float, int]:
    """(seconds from a prompt to its first token, tokens or slots kept)."""
    sampling = SamplingParameters(max_tokens=2, ignore_eos=True)
    before = time.perf_counter()
    request = Request(prompt=tokens, sampling=sampling, programs=way.programs, cache=way.cache, share_prefix=False)
    handle = engine.submit(request)
    while handle.usage.generated_tokens == 0:
        engine.step()
    seconds = time.perf_counter() - before
    handle.cancel()
    return seconds, handle.usage.kept_tokens


def time_rounds(
    engine: Engine, ways: Sequence[Way], tokens: Sequence[int], rows: Mapping[str, Row], rounds: int
) -> None:
    """Every way once a round; the order turns."""
    for number in range(rounds):
        turn = number % len(ways)
        for way in [*ways[turn:], *ways[:turn]]:
            row = rows[way.name]
            with listening() as noise:
                seconds, kept = first_token(engine, way, tokens)
            row.kept = kept if not way.cache else math.floor(way.cache[0]["keep"] * len(tokens))
            row.seconds.append(seconds)
            row.disturbed += noise.others > LIMIT


def recall(
    engine: Engine, way: Way, model: Model, arguments: argparse.Namespace
) -> dict[str, tuple[float, float, float]]:
    """The share of numbers that are named, with its interval, by the question's place."""
    found: dict[str, tuple[float, float, float]] = {}
    for place, (name, options) in QUESTIONS.items():
        task = tasks.load(name, length=arguments.asked or arguments.length, **options)
        items = task.items(model.require_tokenizer(), arguments.items, SEED)
        programmed: Any = ProgrammedEngine(engine, way.programs)
        scores = tuple(task.run(programmed, item, way.cache or None).score for item in items)
        interval = mean_interval(Clustered(scores, tuple(item.identity for item in items)))
        found[place] = (interval.value, interval.low, interval.high)
    return found


def weigh(way: Way, tokens: Sequence[int], row: Row, arguments: argparse.Namespace, model: Model) -> None:
    """The ledger's peak of one prompt in an engine of its own."""
    with closing(engine_of(arguments, model)) as engine:
        first_token(engine, way, tokens)
        usage = engine.usage()
        held = usage.categories.get("draft")
        row.draft_memory = 0 if held is None else held.peak
        row.memory = usage.peak - engine.probe().weights


def show(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """A table for people, one line for programs."""
    whole = statistics.median(rows[0].seconds)
    asked = arguments.asked or arguments.length
    print(
        f"{arguments.model}, prompts of {arguments.length} tokens timed and weighed, {asked} asked about, "
        f"{arguments.items} questions of each kind, {arguments.threads} threads; drafts: "
        f"{arguments.draft or 'the model itself'}\n"
    )
    places = " | ".join(f"recall, question {place}" for place in QUESTIONS)
    print(f"| way | kept | first token s | of the whole | memory MB | of it drafting | {places} |")
    print("|---" * (6 + len(QUESTIONS)) + "|")
    for row in rows:
        seconds = statistics.median(row.seconds)
        void = f" ({row.disturbed} of {len(row.seconds)} disturbed)" if row.disturbed else ""
        shares = [f"{100 * value:.0f} % ({100 * low:.0f}–{100 * high:.0f})" for value, low, high in row.recall.values()]
        memory = f"{row.memory / MEGABYTE:.1f} | {row.draft_memory / MEGABYTE:.1f}"
        print(
            f"| {row.name} | {row.kept} | {seconds:.2f}{void} | {seconds / whole:.2f} × | {memory} | "
            f"{' | '.join(shares)} |"
        )
    print(json.dumps({"arguments": vars(arguments), "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    sys.exit(main())
