"""Caches that do not fit memory: read from disk head group by head group, against a cache in a file that is mapped.

python benchmarks/offload.py [--model smollm2-135m] [--length 4096] [--steps 8] [--rounds 3] [--room 0.5]

Each run is a process of its own. "in memory" runs without a bound and says what is right. The others run in a memory
control group (version 1; the command needs the right to make one) that has room for what the process needs beside its
cache and for `--room` of the cache: page cache counts there, so nothing can hide in it. "mapped" is the plain cache in
a shared file mapping, whose pages the system brings and drops by itself. Sides alternate; figures are medians. Logits
of every step are compared bit by bit with those in memory. Bytes from the disk are the system's own count of the
process (`read_bytes` of /proc/self/io), reads that were answered by the page cache left out.

A table for people, one JSON line last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

GROUPS = Path("/sys/fs/cgroup/memory")
SIDES: dict[str, list[dict[str, Any]]] = {
    "in memory": [],
    "mapped": [],
    "headinfer": [{"technique": "headinfer"}],
    "headinfer, 3 heads": [{"technique": "headinfer", "heads": 3}],
    "kivi, headinfer": [{"technique": "kivi", "bits": 2, "residual": 64}, {"technique": "headinfer"}],
}
SPARE = 24 << 20  # beside what the process held when it had loaded the model


def main() -> None:
    """Run all sides in rounds and print, or one side as a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--length", type=int, default=4096, help="tokens of the prompt")
    parser.add_argument("--steps", type=int, default=8, help="decoded tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--room", type=float, default=0.5, help="of the cache, in the control group")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="of the disk tier and the mapped file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(run(options)))
        return
    print_table(measure(options))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every side's medians, beside the run in memory."""
    free = child(options, "in memory", None)
    bound = int(free["before"] + options.room * free["cache"] + SPARE)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    runs["in memory"].append(free)
    for _ in range(options.rounds):
        for side in list(SIDES)[1:]:
            print(f"{side} in {bound / 1e6:.0f} MB …", file=sys.stderr, flush=True)
            runs[side].append(child(options, side, bound))
    figures = {side: summary(own, free, SIDES[side]) for side, own in runs.items()}
    return {"bound": bound, "cache": free["cache"], "length": options.length, "sides": figures}


def summary(runs: list[dict[str, Any]], free: dict[str, Any], tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of one side's runs; exact: None where its recipe is not that of the run in memory."""
    failed = [run["error"] for run in runs if "error" in run]
    if failed:
        return {"error": failed[0]}
    lossless = all(table["technique"] == "headinfer" for table in tables)
    exact = all(run["logits"] == free["logits"] for run in runs) if lossless else None
    names = ("prefill", "step", "read", "written", "peak")
    return {"exact": exact, **{name: median(run[name] for run in runs) for name in names}}


def child(options: argparse.Namespace, side: str, bound: int | None) -> dict[str, Any]:
    """One run in a process of its own, within `bound` bytes. What it cannot do comes back as "error"."""
    command = [sys.executable, __file__, "--side", side]
    for name in ("model", "length", "steps", "threads", "folder"):
        command += [f"--{name}", str(getattr(options, name))]
    with limited(bound) as enter:
        finished = subprocess.run(command, capture_output=True, text=True, preexec_fn=enter)
    if finished.returncode:
        told = finished.stderr.strip().splitlines()[-1:] or [""]
        return {"error": f"exit status {finished.returncode}: {told[0]}"[:200]}
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


@contextmanager
def limited(bound: int | None) -> Iterator[Callable[[], None] | None]:
    """What a child calls to enter a new control group of so many bytes; None: it stays where it is."""
    if bound is None:
        yield None
        return
    own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line)
    group = GROUPS / own.split(":", 2)[2].lstrip("/") / f"offload-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(bound))

        def enter() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        yield enter
    finally:
        for _ in range(100):  # its last process may still be on its way out
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """A forced answer under one side's recipe: seconds, bytes and a digest of the logits."""
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.forcing import force
    from thrifty.evaluation.text import held_out
    from thrifty.models.loading import load

    if options.side == "mapped":
        map_a_file(options.folder)
    model = load(options.model)
    tokens = held_out(model.require_tokenizer(), options.length + options.steps + 1)
    engine = Engine(model, prefix_tree=False, threads=options.threads, disk=options.folder)
    touch(model)
    before, digest, seconds, cache, read = held(), hashlib.sha256(), [], 0, []
    answer = tokens[options.length :][: options.steps]
    for step in force(engine, tokens[: options.length], answer, SIDES[options.side], logits=True):
        assert step.logits is not None, "they were asked for"
        digest.update(step.logits.tobytes())
        seconds.append(step.seconds)
        read.append(disk_bytes("read_bytes"))
        cache = max(cache, engine.usage().bytes_of("cache"))
    result = {
        "before": before,
        "cache": cache,
        "logits": digest.hexdigest(),
        "prefill": seconds[0],
        "step": median(seconds[1:]),
        "read": (read[-1] - read[0]) / (len(read) - 1),
        "written": disk_bytes("write_bytes"),
        "peak": engine.usage().peak - engine.usage().bytes_of("weights"),
    }
    engine.close()
    return result


def touch(model: Any) -> None:
    """Bring the weights to memory, so that their bytes are counted before the bound is worked out."""
    for linear in model.linears.values():
        for array in vars(linear).values():
            if hasattr(array, "nbytes"):
                array.reshape(-1).view("uint8")[::4096].sum()


def map_a_file(folder: str) -> None:
    """Caches made from here on lie in a file in `folder` that is mapped, and shared: the system writes and reads it."""
    from thrifty.storage import mapping

    size = 1 << 33
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the process
    file.truncate(size)

    def mapped(nbytes: int) -> mmap.mmap:
        return mmap.mmap(file.fileno(), min(nbytes, size) // mmap.PAGESIZE * mmap.PAGESIZE, flags=mmap.MAP_SHARED)

    def punched(self: Any, start: int, nbytes: int) -> None:
        self._map.madvise(9, start, nbytes)  # MADV_REMOVE: the file's bytes go, too, and read as zeros

    mapping._map = mapped
    mapping.Mapping.give_back = punched  # type: ignore[method-assign]


def held() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def disk_bytes(name: str) -> int:
    """Bytes that the system fetched from a disk, or sent to one, for this process."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def print_table(found: dict[str, Any]) -> None:
    """For people, then one JSON line."""
    print(f"a cache of {found['cache'] / 1e6:.0f} MB in a control group of {found['bound'] / 1e6:.0f} MB, all included")
    print(f"{'':20} {'prefill s':>10} {'ms a token':>11} {'MB read a token':>16} {'MB held beside weights':>23}  exact")
    for side, own in found["sides"].items():
        if "error" in own:
            print(f"{side:20} {own['error']}")
            continue
        exact = {None: "another recipe", True: "yes", False: "NO"}[own["exact"]]
        figures = (
            f"{own['prefill']:10.1f} {1e3 * own['step']:11.0f} {own['read'] / 1e6:16.1f} {own['peak'] / 1e6:23.1f}"
        )
        print(f"{side:20} {figures}  {exact}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
