"""Prefix-aware routing against round robin: prompt tokens that replicas had cached, and the time to the first token.

    python benchmarks/cluster.py [--model smollm2-135m] [--conversations 9] [--turns 4] [--at-once 3] [--rounds 2]

Starts two replicas of one thread each on this machine, with either router in turn, a fresh cluster for each round. The
load is the same for both: conversations that share a system prompt and grow by about 150 tokens a turn; of those whose
turn is open, a random one comes next (a seed decides). Over all requests of a router; needs the extra `cluster`.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx

from thrifty.api import open_engine
from thrifty.engine.engine import Engine
from thrifty.recipe import Recipe
from thrifty.serving.cluster.prefix_router import ROUTERS
from thrifty.serving.cluster.run import serve_cluster
from thrifty.serving.cluster.settings import ClusterSettings
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.served_model import Fits, ModelSource
from thrifty.serving.settings import ServerSettings

SYSTEM = "You help the visitors of a large library. " * 12
FILLER = "The reading room on the second floor opens at nine, and closes when the last reader leaves. "


@dataclass(frozen=True)
class Answered:
    """One request. seconds: to the first token. prompt, cached: tokens."""

    seconds: float
    prompt: int
    cached: int


def shelf_of(model: str, settings: ServerSettings) -> ModelShelf:
    """What a replica serves."""

    def opened(fits: Fits) -> Engine:
        return open_engine(model, Recipe(), memory="600MB", threads=1, batch=8, queue=64)

    return ModelShelf(settings, [ModelSource(model, opened)], preload=True)


def serve(model: str, routing: str) -> None:
    """Be the server of a round; the first line of the output is the URL."""
    settings = ServerSettings(port=0)
    cluster = ClusterSettings(replicas=2, threads=1, batch=8, routing=routing)
    shelf = functools.partial(shelf_of, model, settings)
    serve_cluster(model, settings, cluster, shelf, lambda url: print(url, flush=True))


def ask(url: str, model: str, messages: list[dict[str, str]]) -> Answered:
    """One turn, streamed; its answer goes to the end of the messages."""
    body: dict[str, Any] = {
        "model": model, "messages": messages, "temperature": 0, "max_tokens": 16, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    began, first, text, usage = time.perf_counter(), None, "", None
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=300) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            first = first or time.perf_counter()  # the front holds the role until the first word
            usage = chunk.get("usage") or usage
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    if first is None or usage is None:
        sys.exit("a stream ended without a token, or without its usage")
    messages.append({"role": "assistant", "content": text})
    return Answered(first - began, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])


def load(url: str, arguments: argparse.Namespace, seed: int) -> list[Answered]:
    """All turns of all conversations, so many at once, in an order that the seed decides."""
    chance, lock = random.Random(seed), threading.Lock()
    talks = {number: [{"role": "system", "content": SYSTEM}] for number in range(arguments.conversations)}
    left = dict.fromkeys(talks, arguments.turns)
    answered: list[Answered] = []

    def work() -> None:
        while True:
            with lock:
                if not left:
                    return
                number = chance.choice(sorted(left))
                turns = left.pop(number)
            talks[number].append({"role": "user", "content": f"Visitor {number} asks. " + FILLER * 7 + "Is it open?"})
            result = ask(url, arguments.model, talks[number])
            with lock:
                answered.append(result)
                if turns > 1:
                    left[number] = turns - 1

    workers = [threading.Thread(target=work) for _ in range(arguments.at_once)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return answered


def measured(routing: str, arguments: argparse.Namespace, seed: int) -> list[Answered]:
    """One round on a fresh cluster."""
    command = [sys.executable, __file__, "--model", arguments.model, "--serve", routing]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            while (told := httpx.get(f"{url}/health", timeout=60)).status_code != 200 or told.json()["replicas"] < 2:
                if server.poll() is not None:
                    sys.exit("the cluster did not start")
                time.sleep(0.5)
            return load(url, arguments, seed)
        finally:
            server.terminate()


def summary(answered: list[Answered]) -> dict[str, float]:
    """What one router did."""
    seconds = sorted(answer.seconds for answer in answered)
    prompt = sum(answer.prompt for answer in answered)
    return {
        "requests": len(answered),
        "prompt_tokens": prompt,
        "cached_share": round(sum(answer.cached for answer in answered) / prompt, 3),
        "ttft_median_s": round(statistics.median(seconds), 3),
        "ttft_p90_s": round(seconds[int(0.9 * (len(seconds) - 1))], 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--conversations", type=int, default=9)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--serve", choices=ROUTERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.model, arguments.serve)
    answered: dict[str, list[Answered]] = {routing: [] for routing in ROUTERS}
    for seed in range(arguments.rounds):
        for routing in ROUTERS:
            answered[routing] += measured(routing, arguments, seed)
    results = {routing: summary(requests) for routing, requests in answered.items()}
    print(f"{'router':<12} {'requests':>8} {'cached':>8} {'TTFT median':>12} {'TTFT p90':>9}")
    for routing, result in results.items():
        print(
            f"{routing:<12} {result['requests']:>8.0f} {result['cached_share']:>8.1%} "
            f"{result['ttft_median_s']:>10.3f} s {result['ttft_p90_s']:>7.3f} s"
        )
    print(json.dumps(results))
    return None


if __name__ == "__main__":
    main()
