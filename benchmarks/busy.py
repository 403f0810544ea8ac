"""Decoding while another process takes one of the processors.

    python benchmarks/busy.py [--model smollm2-135m] [--seconds 6] [--rounds 3]

Three rates, in alternating rounds: one thread on a quiet machine, all threads on a quiet machine, and all threads
beside a process that spins on one processor. Printed as medians; the last line is JSON. Exit code 1 where the busy rate
is below 80 % of one thread's rate alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from thrifty import Thrifty
from thrifty.kernels import dispatch

BAR = 0.8
PROMPT = "The printing press changed how knowledge travelled. " * 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seconds", type=float, default=6.0, help="of decoding a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    threads = dispatch.require().available_threads()
    if threads < 2:
        raise SystemExit("this machine has one processor: nothing to share")
    rates: dict[str, list[float]] = {"one thread, quiet": [], "all threads, quiet": [], "all threads, busy": []}
    with Thrifty(arguments.model, context=4096) as thrifty:
        for _ in range(arguments.rounds):
            rates["one thread, quiet"].append(decode_rate(thrifty, 1, arguments.seconds))
            rates["all threads, quiet"].append(decode_rate(thrifty, threads, arguments.seconds))
            with spinning_process():
                rates["all threads, busy"].append(decode_rate(thrifty, threads, arguments.seconds))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    share = medians["all threads, busy"] / medians["one thread, quiet"]
    for name, rate in medians.items():
        print(f"{name:20} {rate:7.1f} tokens/s   ({', '.join(f'{value:.1f}' for value in rates[name])})")
    print(f"busy over one thread alone: {share:.2f} (bar {BAR})")
    print(json.dumps({"threads": threads, **{name: round(rate, 2) for name, rate in medians.items()}, "share": share}))
    sys.exit(0 if share >= BAR else 1)


def decode_rate(thrifty: Thrifty, threads: int, seconds: float) -> float:
    """Tokens a second of one greedy answer, from its second token on."""
    dispatch.set_threads(threads)
    stream = iter(thrifty.submit(PROMPT, max_tokens=3800, ignore_eos=True))
    next(stream)
    start, tokens = time.perf_counter(), 0
    for _ in stream:
        tokens += 1
        if time.perf_counter() - start >= seconds:
            break
    stream.close()  # type: ignore[attr-defined]
    return tokens / (time.perf_counter() - start)


@contextmanager
def spinning_process() -> Iterator[None]:
    """A process that keeps the first processor of this one busy."""
    process = multiprocessing.get_context("spawn").Process(target=spin, args=(min(os.sched_getaffinity(0)),))
    process.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        process.kill()
        process.join()


def spin(processor: int) -> None:
    """Never returns."""
    os.sched_setaffinity(0, {processor})
    while True:
        pass


if __name__ == "__main__":
    main()
