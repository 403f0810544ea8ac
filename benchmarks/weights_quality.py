"""What each weight technique costs in quality, bytes and time, at each of its widths: the table of docs/weights.md.

    .venv/bin/python benchmarks/weights_quality.py                                  # all techniques, smollm2-135m
    .venv/bin/python benchmarks/weights_quality.py --techniques gptq,awq --bits 4 --passages 4
    .venv/bin/python benchmarks/weights_quality.py --techniques "" --recipe ordered.toml   # rows of one's own
    .venv/bin/python benchmarks/weights_quality.py --page-only                      # the table again from the figures

The model is taken off its checkpoint's grid first (`--view file` measures its own values instead). Each row's model
decodes the same passages of prose as the uncompressed one in the same engine; intervals draw whole passages. A row is
in the JSON file when it is made, and the same command goes on there; one that failed is tried again.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.weights_table import Figures, Rows, key_of, put, read, write

from thrifty import registry
from thrifty.api import open_engine, open_model
from thrifty.claims.harness.scores.passages import SCORED, Cut, cuts
from thrifty.engine.engine import Engine
from thrifty.errors import ThriftyError
from thrifty.evaluation.forcing import force
from thrifty.evaluation.measuring import memory
from thrifty.evaluation.paired import Clustered, mean_interval
from thrifty.evaluation.quality import Baseline, TokenScores
from thrifty.evaluation.recovery import Interval
from thrifty.models.loading import load
from thrifty.models.model import Model
from thrifty.recipe import Recipe
from thrifty.weights.offgrid import packed_view
from thrifty.weights.structure import linears
from thrifty.weights.technique import OUTSIDE

ROOT = Path(__file__).resolve().parents[1]
PREFIX = 64  # tokens in front of what is scored
GROUPS = (32, 128)
Table = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing and write the page. The exit code: 130 where Ctrl-C ended it."""
    options = parse(arguments)
    rows = read(options.json)
    code = 0
    if not options.page_only:
        try:
            measure_all(options, rows)
        except KeyboardInterrupt:
            say("stopped: what is done is kept")
            code = 130
    table = put(options.page, rows) if options.page.exists() else "\n".join(rows.table())
    print(table)
    return code


def tables_of(name: str, bits: Sequence[int] | None) -> Iterator[Table]:
    """The rows of one technique: each of its widths in small and large groups, as far as it has these options."""
    known = choices(name)
    widths = [width for width in known.get("bits", (None,)) if bits is None or width is None or width in bits]
    groups = [group for group in known.get("group", (None,)) if group is None or group in GROUPS]
    for width in widths:
        for group in groups:
            options = {"bits": width, "group": group}
            yield {"technique": name} | {option: value for option, value in options.items() if value is not None}


def choices(name: str) -> dict[str, tuple[Any, ...]]:
    """The values of a technique's options, of those that have a fixed few."""
    hints = get_type_hints(registry.load("weights", name))
    return {option: get_args(hint) for option, hint in hints.items() if get_origin(hint) is Literal}


def measure_all(options: argparse.Namespace, rows: Rows) -> None:
    """Every row that the file does not hold yet, each on disk when it is made."""
    model = load(options.model, threads=options.threads)
    if options.view == "offgrid":
        model = packed_view(model)
    tokenizer = model.require_tokenizer()
    chosen = cuts(tokenizer, model.config.context_length, PREFIX, options.passages, seed=0)
    recipes = [[table] for name in options.techniques for table in tables_of(name, options.bits)]
    recipes += [Recipe.load(path).weights for path in options.recipe]
    wanted = [recipe for recipe in [[], *recipes] if not rows.has(key_of(options.model, options.view, recipe, chosen))]
    if not wanted:
        return
    say(f"uncompressed, {len(chosen)} passages of {SCORED} tokens")
    engine = open_engine(model, threads=options.threads, prefix_tree=False)
    baselines = [Baseline.measure(engine, cut.passage) for cut in chosen]
    engine.close()
    for recipe in wanted:
        say(f"{Recipe(weights=recipe).label()}")
        key = key_of(options.model, options.view, recipe, chosen)
        try:
            rows.add(key, measured(model, recipe, chosen, baselines, options.threads))
        except ThriftyError as error:
            rows.add(key, {"error": str(error)})
        write(options.json, rows)


def measured(
    model: Model, recipe: list[Table], chosen: Sequence[Cut], baselines: Sequence[Baseline], threads: int | None
) -> Figures:
    """The figures of one recipe. seconds, peak: of compressing, peak the bytes by which the process grew meanwhile."""
    with memory.watch() as watched:
        started = time.perf_counter()
        small = open_model(model, Recipe(weights=recipe))
        seconds = time.perf_counter() - started
    inside = [own.linear for own in linears(small) if own.role not in OUTSIDE]
    numbers = sum(linear.out_features * linear.in_features for linear in inside)
    engine = open_engine(small, threads=threads, prefix_tree=False)
    try:
        return {
            "bits": 8 * sum(linear.nbytes for linear in inside) / numbers,
            "bytes": small.nbytes,
            **quality(engine, chosen, baselines),
            **({"seconds": round(seconds, 1), "peak": watched.peak - watched.before} if recipe else {}),
        }
    finally:
        engine.close()


def quality(engine: Engine, chosen: Sequence[Cut], baselines: Sequence[Baseline]) -> Figures:
    """Mean KL from the uncompressed model in nats, the share of equal first choices, and perplexity."""
    scores, clusters = TokenScores(), []
    for cut, baseline in zip(chosen, baselines, strict=True):
        expected = baseline.rows()
        for step in force(engine, cut.passage.prompt, cut.passage.answer, [], logits=True):
            if step.index >= cut.passage.first:
                assert step.logits is not None, "the run asked for logits"
                scores.add(next(expected), step.logits, cut.passage.answer[step.index])
                clusters.append(cut.name)
    kl, nll = (interval(values, clusters) for values in (scores.kl, scores.nll))
    top1 = sum(scores.same) / len(scores.same)
    perplexity = Interval(math.exp(nll.value), math.exp(nll.low), math.exp(nll.high))
    return {"kl": kl.as_dict(), "perplexity": perplexity.as_dict(), "top1": top1, "tokens": len(clusters)}


def interval(values: Sequence[float], clusters: Sequence[str]) -> Interval:
    """The mean with its interval, passages drawn whole."""
    return mean_interval(Clustered(tuple(values), tuple(clusters), bounded=False))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--view", choices=["offgrid", "file"], default="offgrid")
    words = "default: all that are registered; none for recipes alone"
    parser.add_argument("--techniques", type=lambda text: [name for name in text.split(",") if name], help=words)
    parser.add_argument("--bits", type=lambda text: [int(part) for part in text.split(",")], help="default: all")
    parser.add_argument("--recipe", type=Path, action="append", default=[], help="one more row; may be repeated")
    parser.add_argument("--passages", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "weights.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "weights.md")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    known = registry.names("weights")
    options.techniques = known if options.techniques is None else options.techniques
    unknown = [name for name in options.techniques if name not in known]
    if unknown:
        parser.error(f"no weight technique {', '.join(unknown)}; there are {', '.join(known)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
