"""Every KV-cache technique at several budgets, with kvpress beside it on the same model, tokens and questions.

    make kvpress                                                    # kvpress's own environment
    .venv/bin/python benchmarks/kv_cache_table.py                   # some hours on two cores, then docs/kv-cache.md
    .venv/bin/python benchmarks/kv_cache_table.py --context 0       # without the speed, which needs a quiet machine
    .venv/bin/python benchmarks/kv_cache_table.py --model recall-2m --techniques snapkv,kivi --budgets 0.25 --items 2

Every figure is on disk when it is made, and the same command goes on there. A technique that fails is a row with its
reason, and is tried again. The page first, one line of JSON for each model last.
"""

from __future__ import annotations

import argparse
import datetime
import functools
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
from benchmarks.cache_table.page import page, page_of
from benchmarks.cache_table.questions import SPEED, Figures, Questions, questions
from benchmarks.cache_table.rows import Row
from benchmarks.cache_table.sections import Section, sections
from benchmarks.comparison.processes import WorkerError
from benchmarks.comparison.sleeping import ROOT

from thrifty import registry
from thrifty.errors import ThriftyError
from thrifty.evaluation.roofline.machine import cores, cpu_name
from thrifty.models.loading import load
from thrifty.models.model import Model
from thrifty.storage.journal import Journal

PYTHON = ROOT / ".venv-kvpress" / "bin" / "python"
REMEDY = "Give that run's options to continue it, --fresh to forget it, or another --state."
STEPS = 64

Results = dict[str, dict[str, Any]]
Measure = Callable[[Row, str], Figures]
Add = Callable[[Row, str, dict[str, Any]], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, write the page, print the JSON lines. The exit code: 130 where Ctrl-C ended it."""
    options = parse(arguments)
    texts, documents, code = [], [], 0
    for section in sections(options):
        model = load(section.model, threads=options.threads)
        names = section.tasks.split(",")
        asked = questions(model.tokenizer, names, section.length, section.items, section.context, STEPS)
        rows = chosen(options, section)
        found, ended = measured(options, section, model, asked, rows)
        texts.append(page_of(section, rows, list(asked.tasks), found))
        documents.append({**settings(section, model), "context": section.context, "rows": found})
        if ended:
            code = 130
            break
    text = page(facts(options), texts)
    options.page.write_text(text, encoding="utf-8")
    if not options.json:
        sys.stdout.write(text)
    for document in documents:
        sys.stdout.write(json.dumps(document) + "\n")
    return code


def chosen(options: argparse.Namespace, section: Section) -> list[Row]:
    """The rows, Thrifty's uncompressed cache first."""
    shares = [float(share) for share in section.budgets.split(",")]
    registered = registry.names("cache")
    names = options.techniques.split(",") if options.techniques else registered
    own = [name for name in names if name in registered]
    unknown = [name for name in names if name not in registered and name not in rows_of.PRESSES]
    if unknown:
        raise SystemExit(f"neither Thrifty nor kvpress has {', '.join(unknown)}; Thrifty has {', '.join(registered)}")
    asked = names if options.techniques else list(rows_of.PRESSES)
    peers = rows_of.kvpress_rows(asked, shares, section.length) if options.peer else []
    alike = rows_of.matched_rows(own, shares) if options.peer else []
    recipes = rows_of.recipe_rows(options.recipe)
    return [*rows_of.thrifty_rows(own, shares, section.options), *recipes, *alike, *peers]


def measured(
    options: argparse.Namespace, section: Section, model: Model, asked: Questions, rows: list[Row]
) -> tuple[Results, bool]:
    """The figures of a section, those that its file holds among them, and whether Ctrl-C ended it."""
    options.state.mkdir(parents=True, exist_ok=True)
    path = options.state / f"{Path(section.model).name}.jsonl"
    found: Results = {}
    with Journal(path, settings(section, model), what="KV-cache table", remedy=REMEDY, fresh=options.fresh) as held:
        conditions = {"context": section.context, "threads": options.threads or cores()}
        for _, line in held.lines:
            if line.get("conditions", conditions) == conditions and "error" not in line["figures"]:
                found.setdefault(line["row"], {})[line["part"]] = line["figures"]
        add = functools.partial(keep, held, conditions, found)
        try:
            measure_all(options, section, model, asked, rows, found, add)
        except KeyboardInterrupt:
            note("stopped: what is done is kept")
            return found, True
    return found, False


def keep(
    held: Journal, conditions: dict[str, int], found: Results, row: Row, part: str, figures: dict[str, Any]
) -> None:
    """A figure in memory and on disk; one of speed with what it was measured under."""
    found.setdefault(row.label, {})[part] = figures
    under = {"conditions": conditions} if part == SPEED else {}
    held.add({"row": row.label, "part": part, "figures": figures, **under})


def measure_all(
    options: argparse.Namespace,
    section: Section,
    model: Model,
    asked: Questions,
    rows: list[Row],
    found: Results,
    add: Add,
) -> None:
    """Measure what `found` lacks, part by part: Thrifty's rows, then kvpress's in its process."""
    work = [(row, part) for row in rows for part in asked.parts if part not in found.get(row.label, {})]
    own = [one for one in work if one[0].engine == rows_of.THRIFTY]
    theirs = [one for one in work if one[0].engine == rows_of.KVPRESS]
    if own:
        side = Own(model, asked, options.threads)
        try:
            run(side.measure, own, add)
        finally:
            side.close()
    if theirs:
        run_peer(options, section, model, asked, theirs, found, add)


def run_peer(
    options: argparse.Namespace,
    section: Section,
    model: Model,
    asked: Questions,
    work: list[tuple[Row, str]],
    found: Results,
    add: Add,
) -> None:
    """kvpress's rows. Without its environment they fail with the reason, and are tried again by the next run."""
    try:
        if not options.python.exists():
            raise WorkerError(f"{options.python} is missing: make kvpress")
        folder = exported(section.model, options.export / model.version[:16])
        side = Beside(options.python, folder, model, asked, options.threads or cores())
    except (ThriftyError, WorkerError) as error:
        note(f"kvpress: {error}")
        for row, part in work:
            found.setdefault(row.label, {})[part] = {"error": str(error)}
        return
    try:
        run(side.measure, work, add)
    finally:
        side.close()


def run(measure: Measure, work: list[tuple[Row, str]], add: Add) -> None:
    """One part after the other; a failure is a figure of its own."""
    for number, (row, part) in enumerate(work, 1):
        started = time.perf_counter()
        figures: dict[str, Any]
        try:
            figures = dict(measure(row, part))
        except WorkerError as error:
            figures = {"error": error.said}
        except Exception as error:
            figures = {"error": f"{type(error).__name__}: {error}"}
        add(row, part, figures)
        shown = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
        )
        note(f"{number}/{len(work)} {row.label}: {part}: {shown} ({time.perf_counter() - started:.1f} s)")


def settings(section: Section, model: Model) -> dict[str, Any]:
    """What a run must share with the one that it goes on from."""
    return {"model": section.model, "version": model.version, "length": section.length, "items": section.items}


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """What the page's head says."""
    return {
        "threads": options.threads or cores(),
        "machine": cpu_name(),
        "date": datetime.date.today().isoformat(),
        "version": kvpress_version(options.python),
    }


def kvpress_version(python: Path) -> str:
    """Of the environment's package; a dash where there is none."""
    found = sorted(python.parent.parent.glob("lib/python*/site-packages/kvpress-*.dist-info"))
    return found[-1].name.removeprefix("kvpress-").removesuffix(".dist-info") if found else "–"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append", help="a name, a GGUF file or a Hugging Face folder; may be repeated"
    )
    parser.add_argument("--techniques", default="", help="comma-separated; default: all of both")
    parser.add_argument("--budgets", help="shares of the prompt that are kept, comma-separated")
    parser.add_argument("--recipe", type=Path, action="append", default=[], help="a recipe file as one more row")
    parser.add_argument("--tasks", help="comma-separated, with options as in 'thrifty eval'")
    parser.add_argument("--items", type=int, help="questions a task")
    parser.add_argument("--length", type=int, help="tokens of a question's context")
    parser.add_argument("--context", type=int, help="tokens before speed is measured; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave kvpress out")
    parser.add_argument("--python", type=Path, default=PYTHON, help="of kvpress's environment")
    parser.add_argument("--export", type=Path, default=Path(tempfile.gettempdir()) / "thrifty-exported")
    parser.add_argument(
        "--state", type=Path, default=Path("kv_cache_table"), help="folder of figures, kept as they come"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what the state holds")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "kv-cache.md")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    return parser.parse_args(arguments)


def note(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
