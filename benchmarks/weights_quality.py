"""What each weight technique costs in quality, bytes and time, at each of its widths: the table of docs/weights.md.

    .venv/bin/python benchmarks/weights_quality.py                                  # all models, techniques and peers
    .venv/bin/python benchmarks/weights_quality.py --models smollm2-135m --rows "gptq*" --rows llama.cpp:Q4_0
    .venv/bin/python benchmarks/weights_quality.py --techniques gptq,awq --bits 4 --passages 4
    .venv/bin/python benchmarks/weights_quality.py --techniques "" --recipe ordered.toml   # rows of one's own
    .venv/bin/python benchmarks/weights_quality.py --page-only                      # the table again from the figures

Rows are every technique of the registry at its widths in small and large groups, recipes of one's own, and peers
(`weights_peers.py`). `--rows` chooses among them by their names. A technique that a model does not have the parts for
is listed with the reason, and not tried again; so is a peer that is not installed, until it is.

The model is taken off its checkpoint's grid first (`--view file` measures its own values instead). Each row's model
decodes the same passages of prose as the uncompressed one in the same engine; intervals draw whole passages. A row is
in the JSON file when it is made, and the same command goes on there; one that failed is tried again.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import weights_peers
from benchmarks.weights_table import Figures, Rows, key_of, put, read, write

from thrifty import registry
from thrifty.api import open_engine, open_model
from thrifty.claims.harness.scores.passages import SCORED, Cut, cuts
from thrifty.engine.engine import Engine
from thrifty.errors import ConfigError, KernelError, RecipeError, ThriftyError
from thrifty.evaluation import tasks
from thrifty.evaluation.comparison import TaskItems
from thrifty.evaluation.forcing import force
from thrifty.evaluation.measuring import memory, speed
from thrifty.evaluation.measuring.noise import LIMIT, listening
from thrifty.evaluation.paired import Clustered, cluster_of, mean_interval, ratio_interval
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
MODELS = ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b", "mixture-2m")
CONTEXT = 512  # tokens before the decoding that is timed
BASE = "uncompressed"
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


@dataclass(frozen=True)
class Row:
    """A recipe, or a peer by its name, in the recipe's place."""

    recipe: tuple[Table, ...] = ()
    peer: str = ""

    @property
    def label(self) -> str:
        """What `--rows` chooses by."""
        return self.peer or (Recipe(weights=list(self.recipe)).label() if self.recipe else BASE)


@dataclass(frozen=True)
class Bench:
    """What all rows of a model share. scores: of the uncompressed model, an item each."""

    chosen: list[Cut]
    baselines: list[Baseline]
    work: list[TaskItems]
    scores: list[float]


def rows_of(options: argparse.Namespace) -> list[Row]:
    """Those that were asked for; the uncompressed model is always there."""
    recipes = [[table] for name in options.techniques for table in tables_of(name, options.bits)]
    recipes += [Recipe.load(path).weights for path in options.recipe]
    known = [Row(tuple(recipe)) for recipe in recipes] + [Row(peer=name) for name in options.peers]
    if options.rows:
        known = [row for row in known if any(fnmatch.fnmatch(row.label, pattern) for pattern in options.rows)]
    return [Row(), *known]


def measure_all(options: argparse.Namespace, rows: Rows) -> None:
    """Every row that the file does not hold yet, each on disk when it is made."""
    for name in options.models:
        measure_model(options, name, rows)


def measure_model(options: argparse.Namespace, name: str, rows: Rows) -> None:
    """The rows of one model."""
    model = load(name, threads=options.threads)
    if options.view == "offgrid":
        model = packed_view(model)
    tokenizer = model.require_tokenizer()
    chosen = cuts(tokenizer, model.config.context_length, PREFIX, options.passages, seed=0)
    keyed = [(row, key_of(name, options.view, row.recipe, chosen, row.peer)) for row in rows_of(options)]
    wanted = [(row, key) for row, key in keyed if not rows.has(key)]
    if not wanted:
        return
    say(f"{name}: {len(wanted)} rows; first the uncompressed model, {len(chosen)} passages of {SCORED} tokens")
    bench = prepared(options, model, chosen)
    for place, (row, key) in enumerate(wanted):
        say(f"{name}, {place + 1} of {len(wanted)}: {row.label}")
        rows.add(key, stamp() | tried(model, row, bench, options.threads))
        write(options.json, rows)


def prepared(options: argparse.Namespace, model: Model, chosen: list[Cut]) -> Bench:
    """The uncompressed model's predictions on the passages, and its scores of the tasks."""
    engine = open_engine(model, threads=options.threads, prefix_tree=False)
    try:
        made = tasks.parse_all(options.tasks) if options.tasks else []
        tokenizer = model.require_tokenizer()
        work = [TaskItems(task, tuple(task.items(tokenizer, options.items, 0))) for task in made]
        baselines = [Baseline.measure(engine, cut.passage) for cut in chosen]
        return Bench(chosen, baselines, work, scores_of(engine, work))
    finally:
        engine.close()


def tried(model: Model, row: Row, bench: Bench, threads: int | None) -> Figures:
    """The figures of a row; in their place why the model cannot have it (`unfit`), or what failed (`error`)."""
    try:
        return measured(model, row, bench, threads)
    except (RecipeError, ConfigError, KernelError) as error:
        return {"unfit": str(error)}
    except ThriftyError as error:
        return {"error": str(error)}


def stamp() -> Figures:
    """When a row was made, and of which commit; "+" where files differ from it."""
    told = [
        subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False).stdout.strip()
        for words in (("rev-parse", "--short=10", "HEAD"), ("status", "--porcelain", "--untracked-files=no", "src"))
    ]
    return {"commit": told[0] + "+" * bool(told[1]), "date": datetime.now(UTC).date().isoformat()}


def measured(model: Model, row: Row, bench: Bench, threads: int | None) -> Figures:
    """The figures of one row. seconds, peak: of compressing, peak the bytes by which the process grew meanwhile."""
    peered = None
    with memory.watch() as watched:
        started = time.perf_counter()
        if row.peer:
            peered = weights_peers.make(model, row.peer, threads)
            small, seconds = peered.model, peered.seconds
        else:
            small = open_model(model, Recipe(weights=list(row.recipe)))
            seconds = time.perf_counter() - started
    inside = [own.linear for own in linears(small) if own.role not in OUTSIDE]
    numbers = sum(linear.out_features * linear.in_features for linear in inside)
    bits = peered.bits if peered is not None else None
    engine = open_engine(small, threads=threads, prefix_tree=False)
    try:
        return {
            "bits": 8 * sum(linear.nbytes for linear in inside) / numbers if bits is None else bits,
            "bytes": small.nbytes if peered is None else peered.nbytes,
            **quality(engine, bench.chosen, bench.baselines),
            **recovery(engine, bench),
            **({} if row.peer else pace(engine)),
            **({"seconds": round(seconds, 1), "peak": watched.peak - watched.before} if row.label != BASE else {}),
        }
    finally:
        engine.close()


def scores_of(engine: Engine, work: Sequence[TaskItems]) -> list[float]:
    """One score an item."""
    return [own.task.run(engine, item, None).score for own in work for item in own.items]


def recovery(engine: Engine, bench: Bench) -> Figures:
    """The share of the uncompressed model's score that is kept, over all items of the tasks; none without tasks, or
    where that model scores nothing.
    """
    if not bench.work:
        return {}
    clusters = tuple(f"{own.task.label}/{cluster_of(item)}" for own in bench.work for item in own.items)
    own, base = (Clustered(tuple(scores), clusters) for scores in (scores_of(engine, bench.work), bench.scores))
    ratio = ratio_interval(own, base)
    return {} if ratio is None else {"recovery": ratio.as_dict(), "items": len(clusters)}


def pace(engine: Engine) -> Figures:
    """Tokens a second behind CONTEXT tokens. disturbed: the share of the machine that other work took, where that is so
    much that the rates decide nothing.
    """
    context = min(CONTEXT, engine.probe().context // 2)
    with listening() as noise:
        found = speed.measure(engine, context)
    if noise.others > LIMIT:
        return {"disturbed": noise.others}
    return {"decode": found.decode_rate, "prefill": found.prefill_rate}


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


def listed(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=listed, default=list(MODELS), help="names, files, folders")
    words = 'a pattern of rows\' names, such as "gptq*"; may be repeated; default: all'
    parser.add_argument("--rows", action="append", help=words)
    parser.add_argument("--peers", type=listed, help="default: all; none for techniques alone")
    parser.add_argument(
        "--tasks", type=listed, default=["choice"], help="whose scores are compared; an empty text for no recovery"
    )
    parser.add_argument("--items", type=int, default=48, help="of every task")
    parser.add_argument("--view", choices=["offgrid", "file"], default="offgrid")
    words = "default: all that are registered; none for recipes alone"
    parser.add_argument("--techniques", type=listed, help=words)
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
    options.peers = weights_peers.names() if options.peers is None else options.peers
    unknown = [name for name in options.techniques if name not in known]
    if unknown:
        parser.error(f"no weight technique {', '.join(unknown)}; there are {', '.join(known)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
