"""From the shell to the first token: seconds, and the process's memory at its peak.

    python benchmarks/start.py [--model smollm2-135m] [--rounds 7] [--tokens 128]
    python benchmarks/start.py --serve [--rounds 7]

Starts `thrifty run` as a user does, with files in the system's cache and modules in compiled form, and waits for the
first byte of its answer; the answer goes on to --tokens tokens. Medians over the rounds; `thrifty --help` beside it.

With --serve: `thrifty serve`, until a client that asks again and again has its first answer (8 tokens of a chat). The
processor time until then is told beside the seconds, since it depends less on what else runs; then what the server
takes while nobody asks: processor time over ten seconds, and memory.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import psutil

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
PROGRAM = [sys.executable, "-m", "thrifty.cli"]


def first_byte(words: list[str]) -> float:
    """Seconds until the program writes something; it runs to its end."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    ) as run:
        assert run.stdout is not None
        run.stdout.read(1)
        seconds = time.perf_counter() - begin
        run.stdout.read()
    if run.returncode:
        sys.exit(f"thrifty {' '.join(words)} ended with {run.returncode}")
    return seconds


BODY = {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "temperature": 0, "max_tokens": 8}
AGAIN = 0.01  # seconds between two tries
IDLE = 10.0  # seconds without a request


def first_answer(model: str, idle: float) -> dict[str, float]:
    """One start of the server: seconds and processor seconds until its first answer, then what it takes idle."""
    begin = time.perf_counter()
    words = ["serve", model, "--port", "0", "--json"]
    with subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    ) as server:
        assert server.stdout is not None
        port = int(json.loads(server.stdout.readline())["url"].split(":")[2].partition("/")[0])
        while not _asked(port, model):
            time.sleep(AGAIN)
        seconds = time.perf_counter() - begin
        process = psutil.Process(server.pid)
        used = _processor_seconds(process)
        time.sleep(0.5)  # what goes on after an answer
        before = _processor_seconds(process)
        time.sleep(idle)
        after, held = _processor_seconds(process), process.memory_info().rss
        server.terminate()
    return {
        "first_answer_s": seconds,
        "first_answer_cpu_s": used,
        "idle_cpu_percent": 100 * (after - before) / idle if idle else 0.0,
        "idle_mb": held / 1e6,
    }


def _asked(port: int, model: str) -> bool:
    """Whether a chat was answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        body = json.dumps(BODY | {"model": model})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    finally:
        connection.close()


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def serve(model: str, rounds: int) -> None:
    """Measure and print starts of the server."""
    first_answer(model, 0.0)  # modules are compiled, files come into the cache
    starts = [first_answer(model, IDLE if last else 0.0) for last in [*[False] * (rounds - 1), True]]
    found = {name: round(statistics.median(start[name] for start in starts), 3) for name in starts[0]}
    found |= {name: round(starts[-1][name], 3) for name in ("idle_cpu_percent", "idle_mb")}
    print(
        f"first answer after {found['first_answer_s']} s ({found['first_answer_cpu_s']} s of a processor); idle "
        f"{found['idle_cpu_percent']} % of a processor and {found['idle_mb']} MB"
    )
    print(json.dumps(found))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.model, arguments.rounds)
    words = ["run", arguments.model, "The capital of France is", "--raw", "--max-tokens", str(arguments.tokens)]
    first_byte(["--help"])  # modules are compiled, files come into the cache
    helps = [first_byte(["--help"]) for _ in range(arguments.rounds)]
    first_byte(words)
    starts = [first_byte(words) for _ in range(arguments.rounds)]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    found = {
        "first_token_s": round(statistics.median(starts), 3),
        "help_s": round(statistics.median(helps), 3),
        "peak_mb": round(peak, 1),
    }
    print(f"first token after {found['first_token_s']} s, --help {found['help_s']} s, at most {found['peak_mb']} MB")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
