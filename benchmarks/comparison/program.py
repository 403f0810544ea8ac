"""Thrifty and its peers in one run: alternating rounds, ratios of medians.

    make peers                                            # its own environment; at most 45 minutes
    .venv-peers/bin/python benchmarks/peers.py --quick    # at most 8
    .venv-peers/bin/python benchmarks/peers.py --as-shipped --model qwen2.5-coder-1.5b

A screening picks each engine's best variant for each figure; then the winners alternate. Idle engines are stopped.
A round in which other processes took more than 1 % of the CPU is void and repeated. What was found is on disk after
every round, and --resume goes on from there. A table first, one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.comparison import preparation, report
from benchmarks.comparison.figures import document, figures
from benchmarks.comparison.processes import WorkerError
from benchmarks.comparison.rounds import Plan, TooNoisy, diverge, run_rounds, screen
from benchmarks.comparison.session import Session
from benchmarks.comparison.state import State, resume
from benchmarks.comparison.variants import ENGINES, EXACT, KNOWN, LLAMA, MAIN, THRIFTY, cells, one_file, variants

ROUNDS_SHARE = 0.4  # of the time, which is kept for rounds before divergences are measured
ENDING = 10.0  # seconds kept for what comes after the last round
AS_SHIPPED = [128, 512, 2048, 4096, 8192]  # contexts of a model of real size
RANDOM = ("1.1B-Q4_0", "1.1B-Q4_1", "7B-Q4_K_M")


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; the exit code: 1 where it gave up because of noise."""
    options = parse(arguments)
    start = time.perf_counter()
    preparation.check_installed(options.engines)
    plan = make_plan(options)
    path = options.resume or default_state(options)
    if not options.resume:
        path.unlink(missing_ok=True)
    state = resume(path, settings(options))
    state.noisy = state.noisy or options.allow_noise
    code = 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the report comes all the same
    try:
        measure(options, plan, state, path, start + 60 * options.minutes - ENDING)
    except TooNoisy as error:
        note(str(error))
        code = 1
    except KeyboardInterrupt:
        note("interrupted")
        code = 130
    note(f"what was found is in {path}")
    report_all(options, plan, state, time.perf_counter() - start)
    return code


def measure(options: argparse.Namespace, plan: Plan, state: State, path: Path, deadline: float) -> None:
    """Fill the state: everything that is timed."""
    model, threads, folder = model_file(options), options.threads, cache_folder()
    files = preparation.files(model, plan.field, folder, threads, note)
    measure_bandwidth(state, threads)
    preparation.convert(model, threads)
    scored = 128 if options.quick else 256
    held = folder / f"{model.stem}-{model.stat().st_size}-{scored}.npz"
    with Session(state, files, threads=threads, steps=options.steps, deadline=deadline, note=note) as session:

        def save() -> None:
            state.save(path)

        reserve = session.left * ROUNDS_SHARE
        screen(session, plan, save)
        compared = not options.random_llama and _reference(state, session, model, held, threads, scored)
        if compared:
            diverge(session, plan, held, save, reserve)
        run_rounds(session, plan, save)
        if compared:
            diverge(session, plan, held, save)
    measure_bandwidth(state, threads)
    state.save(path)


def _reference(state: State, session: Session, model: Path, target: Path, threads: int, scored: int) -> bool:
    """Write the reference; False, with a note, where that fails or takes half of the time that is left."""
    note("computing the reference predictions")
    try:
        preparation.reference(model, target, threads, scored, max(1.0, session.left / 2))
    except WorkerError as error:
        note(f"no KL divergence: {error}")
        state.errors["reference"] = str(error)
        return False
    return True


def measure_bandwidth(state: State, threads: int) -> None:
    """Keep the best: whatever disturbs it only makes it less, and a roofline too low flatters."""
    note("measuring memory bandwidth")
    state.bandwidth = max(state.bandwidth or 0.0, preparation.bandwidth(threads))


def make_plan(options: argparse.Namespace) -> Plan:
    """What a run with these options does."""
    if options.as_shipped:
        batch = not options.random_llama
        field, in_cells, main = one_file(options.engines, options.quick), cells(options.contexts, batch), EXACT
    else:
        field = variants(options.engines, max(options.contexts), quick=options.quick)
        in_cells, main = cells(options.contexts), MAIN
    return Plan(
        field=field,
        cells=in_cells,
        figures=figures(in_cells, main),
        rounds=options.rounds,
        long_rounds=1 if options.quick else options.rounds,
        voids=options.voids if options.voids is not None else 3 * options.rounds,
        allow_noise=options.allow_noise,
        quick=options.quick,
    )


def report_all(options: argparse.Namespace, plan: Plan, state: State, seconds: float) -> None:
    """The table, then the line of JSON."""
    main = EXACT if options.as_shipped else MAIN
    found = document(
        plan.field,
        plan.cells,
        main,
        state.samples,
        threads=options.threads,
        bandwidth=state.bandwidth or 0.0,
        first=state.first,
        kl=state.kl,
    )
    counts = {"rounds": options.rounds, "void_rounds": state.voids, "noisy": state.noisy, "seconds": round(seconds)}
    found |= {"model": settings(options)["model"], "quick": options.quick, **counts, "errors": state.errors}
    report.show(found)
    line = json.dumps(found)
    if options.json:
        options.json.write_text(line + "\n")
    print(line)


def model_file(options: argparse.Namespace) -> Path:
    """The GGUF file that all read. Raises SystemExit for a model that is a directory."""
    if options.random_llama:
        from benchmarks.peer_engines.random_llama import write_random_llama

        path = cache_folder() / f"random-llama-{options.random_llama}.gguf"
        if not path.exists():
            note(f"writing {path}")
            write_random_llama(path, options.random_llama)
        return path
    from thrifty.models.loading import resolve

    path = resolve(options.model)
    if path.suffix != ".gguf":
        raise SystemExit(f"{options.model} is {path}; the peers read GGUF files only: name one")
    return path.resolve()


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What a resumed run must share with the one that it continues."""
    return {
        "model": f"random-llama-{options.random_llama}" if options.random_llama else str(options.model),
        "threads": options.threads,
        "contexts": options.contexts,
        "engines": options.engines,
        "steps": options.steps,
        "quick": options.quick,
        "as_shipped": options.as_shipped,
    }


def cache_folder() -> Path:
    """Where files of the comparison are kept."""
    from thrifty.models.store.cache_directory import cache_directory

    return cache_directory() / "peers"


def default_state(options: argparse.Namespace) -> Path:
    """Where the state of a run goes that names no file."""
    return cache_folder() / f"{Path(str(settings(options)['model'])).stem}.state.json"


def note(message: str) -> None:
    """A line of progress, on stderr."""
    print(f"[{time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, with the defaults of the kind of run filled in. Exits for what does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model or a GGUF file")
    parser.add_argument(
        "--as-shipped", action="store_true", help="every engine reads the file's own values; llama.cpp is the peer"
    )
    parser.add_argument("--random-llama", choices=RANDOM, help="instead of a model: random weights, as shipped")
    parser.add_argument("--contexts", type=_counts, help="tokens, such as 128,2048,6144")
    parser.add_argument("--engines", type=_engines, help=f"some of {','.join(KNOWN)}")
    parser.add_argument("--rounds", type=int, help="of the winners; 7, quick 3")
    parser.add_argument("--steps", type=int, default=64, help="tokens decoded in a sample")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="the whole run's limit; 45, quick 8")
    parser.add_argument("--quick", action="store_true", help="fewer variants and rounds")
    parser.add_argument("--voids", type=int, help="void rounds before it gives up; three times --rounds")
    parser.add_argument("--allow-noise", action="store_true", help="count disturbed rounds; the JSON says so")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on from, and save to, this state")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the line of JSON here too")
    options = parser.parse_args(arguments)
    options.as_shipped = options.as_shipped or bool(options.random_llama)
    few = options.quick or options.random_llama
    options.rounds = options.rounds or (3 if few else 7)
    options.minutes = options.minutes or (8.0 if options.quick else 45.0)
    usual = [128, 2048] if options.random_llama else AS_SHIPPED if options.as_shipped else [128, 2048, 6144]
    options.contexts = options.contexts or usual
    options.engines = options.engines or ([THRIFTY, LLAMA] if options.as_shipped else list(ENGINES))
    if options.random_llama and set(options.engines) - {THRIFTY, LLAMA}:
        parser.error("--random-llama compares thrifty and llama.cpp only")
    return options


def _counts(text: str) -> list[int]:
    counts = sorted({int(part) for part in text.split(",")})
    if not counts or counts[0] < 1:
        raise argparse.ArgumentTypeError(f"{text} is no list of positive numbers")
    return counts


def _engines(text: str) -> list[str]:
    chosen = [engine for engine in KNOWN if engine in text.split(",")]
    if unknown := set(text.split(",")) - set(KNOWN):
        raise argparse.ArgumentTypeError(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(KNOWN)}")
    return chosen
