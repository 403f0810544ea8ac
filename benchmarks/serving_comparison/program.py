"""Thrifty's server beside its peers' under one load, and beside its own engine: alternating rounds.

    .venv/bin/python benchmarks/serving.py --peers .venv-peers/bin/python   # both parts; about 11 minutes
    .venv/bin/python benchmarks/serving.py --part cost                      # about 4; needs no peers
    .venv/bin/python benchmarks/serving.py --part goodput --servers thrifty --more "--prefill-slice 25"

goodput: 8 chats at a time, prompts of 1024 tokens of which the first 512 are shared, answers of 128, for --seconds a
round; the requests a second whose first token came within 2 s and whose later tokens took 60 ms at most.
cost: tokens a second at batch 8 of the engine alone, of AsyncEngine and of the server; and what the server adds to the
time to the first token. The peers are `llama-cpp-python[server]` and OpenVINO GenAI's continuous batching; --peers
names a Python that has them. Whoever is not measured is stopped. A round in which other processes took more than 1 %
of the CPU is void and repeated. A table first, one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.comparison.processes import WorkerError
from benchmarks.comparison.quiet import listening
from benchmarks.serving_comparison import cost, goodput
from benchmarks.serving_comparison.servers import ServerKind, ServerProcess, kinds

from thrifty.loadtest.prompts import Scale

PARTS = ("goodput", "cost")


class TooNoisy(Exception):
    """Other processes disturbed more rounds than are allowed."""


def main(arguments: list[str] | None = None) -> int:
    """Run both parts, or one; the exit code: 1 where it gave up because of noise."""
    options = parse(arguments)
    path = model_file(options.model)
    begin = time.perf_counter()
    document: dict[str, Any] = {"model": options.model, "threads": options.threads, "voids": 0, "errors": {}}
    code = 0
    try:
        with cost.EngineProcess(path, options.threads) as engine:
            scale = engine.scale()
            engine.sleep()
            known = kinds(
                path, options.threads, options.peers, engine.end_ids, goodput.CHATS, goodput.CONTEXT, options.more
            )
            if "goodput" in options.part:
                _goodput(options, [known[name] for name in options.servers], scale, document)
            if "cost" in options.part:
                _cost(options, known["thrifty"], engine, document)
    except TooNoisy as error:
        note(str(error))
        code = 1
    document["seconds"] = round(time.perf_counter() - begin)
    show(document)
    print(json.dumps(document))
    return code


def _goodput(options: argparse.Namespace, chosen: list[ServerKind], scale: Scale, document: dict[str, Any]) -> None:
    """Every server once a round; they are started together and stopped between their turns."""
    servers: dict[str, ServerProcess] = {}
    found = document["goodput"] = {}
    try:
        for kind in chosen:
            note(f"starting {kind.name}'s server")
            try:
                servers[kind.name] = ServerProcess(kind, options.threads)
                servers[kind.name].sleep()
                found[kind.name] = []
            except WorkerError as error:
                note(str(error))
                document["errors"][kind.name] = str(error)
        for number in range(options.rounds):
            for name, server in servers.items():
                load = goodput.GoodputLoad(server, options.seconds, number, scale)
                found[name].append(_quiet(options, document, f"{name}, round {number + 1}", load.measure))
    finally:
        for server in servers.values():
            server.close()


def _cost(options: argparse.Namespace, kind: ServerKind, engine: cost.EngineProcess, document: dict[str, Any]) -> None:
    with ServerProcess(kind, options.threads) as server:
        server.sleep()
        rounds = []
        for number in range(options.cost_rounds):
            round_ = cost.CostRound(engine, server, number)
            rounds.append(_quiet(options, document, f"cost, round {number + 1}", round_.measure))
    document["cost"] = rounds


def _quiet(
    options: argparse.Namespace, document: dict[str, Any], what: str, measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What a measurement finds while nobody disturbs it. Raises TooNoisy."""
    while True:
        note(f"measuring {what}")
        with listening() as disturbance:
            found = measure()
        if options.allow_noise or not disturbance.void:
            return found | {"others_share": round(disturbance.total, 4)}
        document["voids"] += 1
        note(f"void: {disturbance.worst} took {disturbance.share:.1%} of a processor")
        if document["voids"] >= options.voids:
            raise TooNoisy(f"{document['voids']} rounds were void; end what else runs, or give --allow-noise")


def show(document: dict[str, Any]) -> None:
    """For people."""
    for name, rounds in document.get("goodput", {}).items():
        for figures in rounds[:1]:
            median = {key: statistics.median(one[key] for one in rounds) for key in figures}
            print(
                f"{name:10} {median['request_goodput']:.2f} good of {median['request_throughput']:.2f} requests/s, "
                f"first token {median['median_ttft_ms']:.0f} ms (p99 {median['p99_ttft_ms']:.0f}), later ones "
                f"{median['median_tpot_ms']:.1f} ms (p99 {median['p99_tpot_ms']:.1f})"
            )
    if rounds := document.get("cost"):
        median = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        shares = f"{median['async_share']:.3f} and {median['server_share']:.3f}"
        print(
            f"batch {cost.CHATS}: engine {median['engine']:.1f}, AsyncEngine {median['async']:.1f}, server "
            f"{median['server']:.1f} tokens/s (of the engine's {shares})"
        )
        print(f"the server adds {median['added_ms']:.2f} ms to {median['first_ms']:.2f} ms to the first token")
    for name, error in document["errors"].items():
        print(f"{name}: {error}")


def model_file(name: str) -> Path:
    """The GGUF file that all read. Raises SystemExit for a model that is a directory."""
    from thrifty.models.loading import resolve

    path = resolve(name).resolve()
    if path.suffix != ".gguf":
        raise SystemExit(f"{name} is {path}; the peers read GGUF files only: name one")
    return path


def note(message: str) -> None:
    """A line of progress, on stderr."""
    print(f"[{time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options. Exits for what does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model or a GGUF file")
    parser.add_argument("--part", choices=PARTS, action="append", help="one of them; both unless given")
    parser.add_argument("--servers", default="thrifty,llama.cpp,openvino", help="names, with commas")
    parser.add_argument("--peers", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--more", default="", help="words for Thrifty's server, such as '--prefill-slice 25'")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a server in a round of goodput")
    parser.add_argument("--rounds", type=int, default=2, help="of goodput")
    parser.add_argument("--cost-rounds", type=int, default=5)
    parser.add_argument("--voids", type=int, default=6, help="void rounds before it gives up")
    parser.add_argument("--allow-noise", action="store_true", help="count disturbed rounds; the JSON tells")
    options = parser.parse_args(arguments)
    options.part = options.part or list(PARTS)
    options.servers = options.servers.split(",")
    if unknown := set(options.servers) - {"thrifty", "llama.cpp", "openvino"}:
        parser.error(f"unknown {', '.join(sorted(unknown))}; known are thrifty, llama.cpp, openvino")
    return options
