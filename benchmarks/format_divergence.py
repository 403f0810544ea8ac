"""How far computing with a file's values is from exact arithmetic, type by type: Thrifty beside llama.cpp.

    .venv-peers/bin/python benchmarks/format_divergence.py [--model qwen2.5-coder-0.5b] [--kinds Q4_K_M,Q6_K]

llama.cpp requantises the model to each kind. For every such file the reference computes the predictions on held-out
text with the file's own values in fp32, and both engines are scored by their mean KL divergence from these: what is
left is the rounding of activations, caches and sums. A table first, one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison import preparation
from benchmarks.comparison.processes import WorkerError, WorkerProcess
from benchmarks.comparison.variants import LLAMA, SHIPPED, THRIFTY
from benchmarks.peer_engines.requantise import FILE_TYPES

PATIENCE = 900.0  # seconds for one answer
ENGINES = (THRIFTY, LLAMA)


@dataclass(frozen=True)
class Row:
    """One kind of file. types: share of the matrices' bytes by tensor type. kl: by engine, in nats, None where it does
    not load the file; errors say why.
    """

    kind: str
    types: dict[str, float]
    kl: dict[str, float | None]
    errors: dict[str, str]

    @property
    def ratio(self) -> float | None:
        """Thrifty's divergence over llama.cpp's."""
        own, other = self.kl.get(THRIFTY), self.kl.get(LLAMA)
        return own / other if own is not None and other else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 where Thrifty does not load a file."""
    options = parse(arguments)
    preparation.check_installed(ENGINES)
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="divergence-") as work:
        for kind in options.kinds:
            try:
                file = _file(options, kind)
            except SystemExit as error:
                note(f"left out: {error}")
                continue
            rows.append(measure(file, kind, Path(work), options))
            note(line(rows[-1]))
    print(table(rows, options.model))
    found = {
        "model": options.model,
        "scored": options.scored,
        "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
    }
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")
    print(json.dumps(found))
    return 1 if any(row.kl[THRIFTY] is None for row in rows) else 0


def measure(
    file: Path,
    kind: str,
    work: Path,
    options: argparse.Namespace,
    worker: Callable[[int], WorkerProcess] = WorkerProcess,
) -> Row:
    """The divergences of one file, each engine in its own process; what fails is told in the row."""
    target = work / f"{kind}.npz"
    asked = {"model": str(file), "target": str(target), "prefix": options.prefix, "scored": options.scored}
    kl: dict[str, float | None] = dict.fromkeys(ENGINES)
    errors: dict[str, str] = {}
    with worker(options.threads) as reference:
        try:
            reference.ask(PATIENCE, op="reference", threads=options.threads, exact=True, **asked)
        except WorkerError as error:
            return Row(kind, {}, kl, {"the reference": error.said})
    for engine in ENGINES:
        specification = {"path": str(file), "threads": options.threads, "options": {}}
        with worker(options.threads) as process:
            try:
                process.ask(PATIENCE, op="load", engine=engine, specification=specification)
                kl[engine] = float(process.ask(PATIENCE, op="kl", reference=str(target))["kl"])
            except WorkerError as error:
                errors[engine] = error.said
    target.unlink(missing_ok=True)
    return Row(kind, shares(file), kl, errors)


def shares(file: Path) -> dict[str, float]:
    """Each tensor type's share of the matrices' bytes, the largest first."""
    from thrifty.models.gguf.file import GGUF

    sizes: dict[str, int] = {}
    for info in GGUF(file).tensors.values():
        if len(info.shape) > 1:
            sizes[info.type] = sizes.get(info.type, 0) + info.nbytes
    total = sum(sizes.values())
    ranked = sorted(sizes.items(), key=lambda pair: -pair[1])
    return {name: round(size / total, 3) for name, size in ranked}


def table(rows: Sequence[Row], model: str) -> str:
    """For people."""
    head = f"{'file':<10}{'thrifty':>10}{'llama.cpp':>11}{'ratio':>8}  types by bytes"
    title = f"{model}: mean KL divergence from exact arithmetic with the file's own values, in nats"
    return "\n".join([title, head, *map(line, rows)])


def line(row: Row) -> str:
    """One row of the table."""
    cells = [f"{row.kind:<10}", _number(row.kl[THRIFTY], 10), _number(row.kl[LLAMA], 11)]
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    types = ", ".join(f"{name} {share:.0%}" for name, share in row.types.items())
    failed = "".join(f"; {engine} failed: {error[:160]}" for engine, error in row.errors.items())
    return f"{''.join(cells)}{ratio:>8}  {types}{failed}"


def _number(value: float | None, width: int) -> str:
    return f"{'-' if value is None else format(value, '.5f'):>{width}}"


def _file(options: argparse.Namespace, kind: str) -> Path:
    """The model as that kind of file."""
    if kind == SHIPPED:
        return options.path
    return preparation.requantised(options.path, kind, options.folder, options.threads, note)


def note(message: str) -> None:
    """A line of progress, on stderr."""
    print(f"[{time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; `path` is the model's file, `folder` where those of other kinds go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b", help="an embedded model or a GGUF file")
    parser.add_argument(
        "--kinds", type=_kinds, default=[SHIPPED, *FILE_TYPES], help="of shipped, " + ", ".join(FILE_TYPES)
    )
    parser.add_argument("--prefix", type=int, default=256, help="tokens before the scored ones")
    parser.add_argument("--scored", type=int, default=256, help="tokens that are scored")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the line of JSON here too")
    options = parser.parse_args(arguments)
    if options.prefix < 1 or options.scored < 1:
        parser.error("--prefix and --scored are numbers of tokens, 1 or more")
    from thrifty.models.loading import resolve
    from thrifty.models.store.cache_directory import cache_directory

    options.path = resolve(options.model).resolve()
    if options.path.suffix != ".gguf":
        parser.error(f"{options.model} is {options.path}; llama.cpp requantises GGUF files only: name one")
    options.folder = cache_directory() / "peers"
    options.folder.mkdir(parents=True, exist_ok=True)
    return options


def _kinds(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [kind for kind in chosen if kind not in (SHIPPED, *FILE_TYPES)]:
        known = ", ".join((SHIPPED, *FILE_TYPES))
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; known are {known}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
