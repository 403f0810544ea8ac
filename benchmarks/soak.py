"""A server under more than it can do, for as long as one likes: does it stay whole?

    python benchmarks/soak.py --minutes 15

Measures what the server answers a second at most, then sends 120 % of it (Poisson) for --minutes, and judges: memory
stays flat and under the budget; no request is lost, each is answered or refused with 429; each greedy answer is the one
that the same prompt got alone; 99 % of the accepted requests keep the objectives; and what is left afterwards is the
prefix tree alone. The queue is as long as the objective for the first token allows. A table first, one line of JSON
last; the exit code is 0 where everything holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving_comparison.servers import MODEL, ServerKind, ServerProcess

from thrifty.loadtest.arrivals import arrival_times
from thrifty.loadtest.figures import figures, percentile
from thrifty.loadtest.lengths import Lengths
from thrifty.loadtest.load import Load, Measured, send
from thrifty.loadtest.outcome import Outcome
from thrifty.loadtest.prompts import Prompt
from thrifty.loadtest.workload import Workload, weigh

OVERLOAD = 1.2
QUEUED = 0.5  # of the time to the first token that a request may wait in the queue
SAMPLE_SECONDS = 2.0
GROWTH, SLACK = 1.05, 16e6  # what memory may have more at the end than after a third of the time
MOST = 100_000  # requests of the first measurement; its time ends sooner


def kind(options: argparse.Namespace, queue: int) -> ServerKind:
    """The server with a queue of that length."""
    words = (
        sys.executable, "-m", "thrifty", "serve", options.model, "--name", MODEL, "--port", "{port}",
        "--threads", str(options.threads), "--memory", options.memory, "--batch", str(options.batch),
        "--queue", str(queue),
    )  # fmt: skip
    return ServerKind("thrifty", words, {"ignore_eos": True})


class Memory:
    """The server's memory while it runs. samples: seconds since the start, bytes of the process and of the ledger."""

    def __init__(self, server: ServerProcess) -> None:
        self.samples: list[tuple[float, int, float]] = []
        self._server, self._process = server, psutil.Process(server.pid)

    async def watch(self) -> None:
        """Until the task is cancelled."""
        begin = time.perf_counter()
        while True:
            ledger = sum((await asyncio.to_thread(gauges, self._server, "thrifty:memory_bytes")).values())
            self.samples.append((time.perf_counter() - begin, self._process.memory_info().rss, ledger))
            await asyncio.sleep(SAMPLE_SECONDS)

    def third(self, number: int, column: int) -> float:
        """The most in a third of the time: 0, 1 or 2. column: 1 the process, 2 the ledger."""
        first, last = (len(self.samples) * edge // 3 for edge in (number, number + 1))
        part = self.samples[first:last] or self.samples  # one or two samples have no thirds
        return max(sample[column] for sample in part)


def gauges(server: ServerProcess, name: str) -> dict[str, float]:
    """Values of a metric by their labels."""
    with urllib.request.urlopen(f"{server.endpoint.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    values = [line.rpartition(" ") for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    return {labels: float(value) for labels, _, value in values}


def pool(options: argparse.Namespace, server: ServerProcess) -> list[Prompt]:
    """The prompts, all of which come again and again; they share a beginning."""
    workload = Workload(options.prompts, Lengths(200, 600), Lengths(24, 72), prefix_tokens=100, seed=options.seed)
    return workload.prompts(asyncio.run(weigh(server.endpoint, workload)))


def alone(server: ServerProcess, prompts: Sequence[Prompt]) -> dict[Prompt, str]:
    """What each is answered while nobody else asks. Raises RuntimeError where one is not."""
    measured = asyncio.run(send(Load(prompts, concurrency=1), server.endpoint.ask))
    for outcome in measured.outcomes:
        if outcome.error:
            raise RuntimeError(f"alone, a request failed: {outcome.error}")
    return dict(zip(prompts, (outcome.text for outcome in measured.outcomes), strict=True))


def capacity(server: ServerProcess, prompts: Sequence[Prompt], chats: int, seconds: float) -> float:
    """Requests a second with `chats` at a time."""

    async def timed() -> Measured:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, stop.set)
        drawn = random.Random(0).choices(prompts, k=MOST)
        return await send(Load(drawn, concurrency=chats), server.endpoint.ask, stop=stop)

    measured = asyncio.run(timed())
    return sum(outcome.success for outcome in measured.outcomes) / measured.seconds


async def overload(server: ServerProcess, drawn: Sequence[Prompt], rate: float, seed: int) -> tuple[Measured, Memory]:
    """All of these prompts at this rate."""
    memory = Memory(server)
    watching = asyncio.create_task(memory.watch())
    try:
        times = arrival_times(len(drawn), rate, 1.0, random.Random(seed))
        measured = await send(Load(drawn, times), server.endpoint.ask)
        if watching.done():
            watching.result()
    finally:
        watching.cancel()
    return measured, memory


def verdicts(
    options: argparse.Namespace, outcomes: Sequence[Outcome], wrong: int, memory: Memory, left: float
) -> dict[str, tuple[bool, str]]:
    """What must hold, whether it does, and the figures. wrong: answers that differ from those alone. left: bytes that
    requests still hold afterwards.
    """
    answered = [outcome for outcome in outcomes if outcome.success]
    refused = [outcome for outcome in outcomes if outcome.rejected]
    lost = len(outcomes) - len(answered) - len(refused)
    ttft = 1e3 * percentile([outcome.ttft for outcome in answered], 99)
    tpot = 1e3 * percentile([outcome.tpot for outcome in answered], 99)
    from thrifty.storage.budget import parse_size

    budget = parse_size(options.memory)
    before, after = memory.third(1, 1), memory.third(2, 1)
    ledger = max(sample[2] for sample in memory.samples)
    first = next((one.error for one in outcomes if one.error and not one.rejected), "")
    return {
        "no request lost": (
            lost == 0,
            f"{len(answered)} answered, {len(refused)} refused, {lost} lost {first}".strip(),
        ),
        "no answer wrong": (wrong == 0 and bool(answered), f"{wrong} of {len(answered)} differ from the answer alone"),
        "overload is refused": (bool(refused), f"{len(refused) / len(outcomes):.0%} got 429"),
        "first token in time": (
            bool(answered) and ttft <= options.ttft,
            f"p99 {ttft:.0f} ms, at most {options.ttft:.0f}",
        ),
        "later tokens in time": (
            bool(answered) and tpot <= options.tpot,
            f"p99 {tpot:.1f} ms, at most {options.tpot:.0f}",
        ),
        "memory is flat": (after <= GROWTH * before + SLACK, f"{before / 1e6:.1f} MB, at the end {after / 1e6:.1f}"),
        "memory within the budget": (ledger <= budget, f"{ledger / 1e6:.1f} MB at most, of {budget / 1e6:.1f}"),
        "all is given back": (left == 0, f"{left / 1e6:.2f} MB of caches afterwards"),
    }


def main() -> int:
    """Measure and judge; the exit code."""
    options = parse()
    note("measuring the capacity")
    with ServerProcess(kind(options, 1000), options.threads) as server:
        prompts = pool(options, server)
        expected = alone(server, prompts)
        most = capacity(server, prompts, options.batch, options.capacity_seconds)
    if not most:
        raise SystemExit(f"no request was answered in {options.capacity_seconds:g} s; give --capacity-seconds more")
    queue = max(1, math.floor(QUEUED * options.ttft / 1e3 * most))
    rate = OVERLOAD * most
    drawn = random.Random(options.seed).choices(prompts, k=max(1, round(rate * 60 * options.minutes)))
    note(f"{most:.2f} requests/s at most; sending {rate:.2f}/s for {options.minutes:g} min, {queue} may wait")
    with ServerProcess(kind(options, queue), options.threads) as server:
        measured, memory = asyncio.run(overload(server, drawn, rate, options.seed))
        time.sleep(2)
        caches = gauges(server, "thrifty:memory_bytes")
        left = sum(value for labels, value in caches.items() if 'owner="cache"' in labels)
    pairs = zip(measured.outcomes, drawn, strict=True)
    wrong = sum(outcome.success and outcome.text != expected[prompt] for outcome, prompt in pairs)
    found = verdicts(options, measured.outcomes, wrong, memory, left)
    holds = all(good for good, _ in found.values())
    for name, (good, told) in found.items():
        print(f"{'yes' if good else 'NO ':3} {name}: {told}")
    print("everything holds" if holds else "it does not hold")
    document: dict[str, Any] = figures(measured, {"ttft": options.ttft, "tpot": options.tpot})
    document |= {"capacity": most, "request_rate": rate, "queue": queue, "holds": holds, "wrong": wrong}
    print(json.dumps(document | {"verdicts": {name: list(own) for name, own in found.items()}}))
    return 0 if holds else 1


def note(message: str) -> None:
    """A line of progress, on stderr."""
    print(f"[{time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--minutes", type=float, default=15.0, help="of overload")
    parser.add_argument("--memory", default="400MB", help="the server's budget")
    parser.add_argument("--batch", type=int, default=8, help="sequences at a time")
    parser.add_argument("--prompts", type=int, default=24, help="different ones")
    parser.add_argument("--ttft", type=float, default=2000.0, help="ms to the first token, for 99 %% of the accepted")
    parser.add_argument("--tpot", type=float, default=60.0, help="ms a later token, likewise")
    parser.add_argument("--capacity-seconds", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
