"""Every KV-cache technique at several budgets, with kvpress beside it on the same model, tokens and questions.

    make kvpress                                                    # kvpress's own environment
    .venv/bin/python benchmarks/kv_cache_table.py                   # some hours on two cores, then docs/kv-cache.md
    .venv/bin/python benchmarks/kv_cache_table.py --techniques snapkv,kivi --budgets 0.25 --items 2 --context 0

Every figure is on disk when it is made, and the same command goes on there. A technique that fails is a row with its
reason. The page first, one line of JSON last.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cache_table import rows as rows_of
from benchmarks.cache_table.beside import Beside
from benchmarks.cache_table.export import exported
from benchmarks.cache_table.own import Own
from benchmarks.cache_table.page import page
from benchmarks.cache_table.questions import SPEED, Figures, Questions, questions
from benchmarks.cache_table.rows import Row
from benchmarks.comparison.processes import ROOT, WorkerError

from thrifty import registry
from thrifty.errors import ThriftyError
from thrifty.evaluation.machine import cores, cpu_name
from thrifty.models.loading import load
from thrifty.models.model import Model
from thrifty.storage.journal import Journal

TASKS = "recall,recall:mode=aware,recall-many,multi-turn,multi-request,tracing,kl"
BUDGETS = "0.5,0.25,0.125"
PYTHON = ROOT / ".venv-kvpress" / "bin" / "python"
REMEDY = "Give that run's options to continue it, --fresh to forget it, or another --state."
STEPS = 64

Results = dict[str, dict[str, Any]]
Measure = Callable[[Row, str], Figures]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, write the page, print the JSON line. The exit code: 130 where Ctrl-C ended it."""
    options = parse(arguments)
    model = load(options.model, threads=options.threads)
    asked = questions(model.tokenizer, options.tasks.split(","), options.length, options.items, options.context, STEPS)
    rows = chosen(options)
    code, header = 0, settings(options, model)
    with Journal(options.state, header, what="KV-cache table", remedy=REMEDY, fresh=options.fresh) as held:
        found: Results = {}
        for _, line in held.lines:
            found.setdefault(line["row"], {})[line["part"]] = line["figures"]
        try:
            measure_all(options, model, asked, rows, found, held)
        except KeyboardInterrupt:
            note("stopped: what is done is kept")
            code = 130
    text = page(rows, list(asked.tasks), found, facts(options))
    options.page.write_text(text, encoding="utf-8")
    if not options.json:
        sys.stdout.write(text)
    sys.stdout.write(json.dumps({**header, "rows": found}) + "\n")
    return code


def chosen(options: argparse.Namespace) -> list[Row]:
    """The rows, Thrifty's uncompressed cache first."""
    shares = [float(share) for share in options.budgets.split(",")]
    registered = registry.names("cache")
    names = options.techniques.split(",") if options.techniques else registered
    own = [name for name in names if name in registered]
    unknown = [name for name in names if name not in registered and name not in rows_of.PRESSES]
    if unknown:
        raise SystemExit(f"neither Thrifty nor kvpress has {', '.join(unknown)}; Thrifty has {', '.join(registered)}")
    peers = rows_of.kvpress_rows(names if options.techniques else list(rows_of.PRESSES), shares) if options.peer else []
    return [*rows_of.thrifty_rows(own, shares), *rows_of.recipe_rows(options.recipe), *peers]


def measure_all(
    options: argparse.Namespace, model: Model, asked: Questions, rows: list[Row], found: Results, held: Journal
) -> None:
    """Fill `found`, part by part: Thrifty's rows, then kvpress's in its process."""
    parts = asked.parts if options.context else [part for part in asked.parts if part != SPEED]
    work = [(row, part) for row in rows for part in parts if part not in found.get(row.label, {})]
    own = [one for one in work if one[0].engine == rows_of.THRIFTY]
    theirs = [one for one in work if one[0].engine == rows_of.KVPRESS]
    if own:
        side = Own(model, asked, options.threads)
        try:
            run(side.measure, own, found, held)
        finally:
            side.close()
    if theirs:
        run_peer(options, model, asked, theirs, found, held)


def run_peer(
    options: argparse.Namespace,
    model: Model,
    asked: Questions,
    work: list[tuple[Row, str]],
    found: Results,
    held: Journal,
) -> None:
    """kvpress's rows. Without its environment they fail with the reason, and are tried again by the next run."""
    try:
        if not options.python.exists():
            raise WorkerError(f"{options.python} is missing: make kvpress")
        folder = exported(options.model, options.export / model.version[:16])
        side = Beside(options.python, folder, model, asked, options.threads or cores())
    except (ThriftyError, WorkerError) as error:
        note(f"kvpress: {error}")
        for row, part in work:
            found.setdefault(row.label, {})[part] = {"error": str(error)}
        return
    try:
        run(side.measure, work, found, held)
    finally:
        side.close()


def run(measure: Measure, work: list[tuple[Row, str]], found: Results, held: Journal) -> None:
    """One part after the other; a failure is a figure of its own."""
    for number, (row, part) in enumerate(work, 1):
        started = time.perf_counter()
        figures: dict[str, Any]
        try:
            figures = dict(measure(row, part))
        except Exception as error:
            figures = {"error": f"{type(error).__name__}: {error}"}
        found.setdefault(row.label, {})[part] = figures
        held.add({"row": row.label, "part": part, "figures": figures})
        shown = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
        )
        note(f"{number}/{len(work)} {row.label}: {part}: {shown} ({time.perf_counter() - started:.1f} s)")


def settings(options: argparse.Namespace, model: Model) -> dict[str, Any]:
    """What a run must share with the one that it goes on from."""
    return {
        "model": options.model,
        "version": model.version,
        "length": options.length,
        "items": options.items,
        "context": options.context,
        "threads": options.threads,
    }


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """What the page's head says."""
    return {
        "command": "python benchmarks/kv_cache_table.py" + (f" --model {options.model}" if options.model else ""),
        "model": options.model,
        "threads": options.threads or cores(),
        "machine": cpu_name(),
        "date": datetime.date.today().isoformat(),
        "version": kvpress_version(options.python),
        "length": options.length,
        "items": options.items,
        "context": options.context,
    }


def kvpress_version(python: Path) -> str:
    """Of the environment's package; a dash where there is none."""
    found = sorted(python.parent.parent.glob("lib/python*/site-packages/kvpress-*.dist-info"))
    return found[-1].name.removeprefix("kvpress-").removesuffix(".dist-info") if found else "–"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name, a GGUF file or a Hugging Face folder")
    parser.add_argument("--techniques", default="", help="comma-separated; default: all of both")
    parser.add_argument("--budgets", default=BUDGETS, help=f"shares of the prompt that are kept (default: {BUDGETS})")
    parser.add_argument("--recipe", type=Path, action="append", default=[], help="a recipe file as one more row")
    parser.add_argument("--tasks", default=TASKS, help=f"default: {TASKS}")
    parser.add_argument("--items", type=int, default=12, help="questions a task")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a question's context")
    parser.add_argument("--context", type=int, default=6000, help="tokens before speed is measured; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave kvpress out")
    parser.add_argument("--python", type=Path, default=PYTHON, help="of kvpress's environment")
    parser.add_argument("--export", type=Path, default=Path(tempfile.gettempdir()) / "thrifty-exported")
    parser.add_argument("--state", type=Path, default=Path("kv_cache_table.jsonl"), help="figures, kept as they come")
    parser.add_argument("--fresh", action="store_true", help="forget what the state holds")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "kv-cache.md")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    return parser.parse_args(arguments)


def note(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
