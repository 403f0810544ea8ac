"""From the shell to the first token: seconds, and the process's memory at its peak.

    python benchmarks/start.py [--model smollm2-135m] [--rounds 7] [--tokens 128]

Starts `thrifty run` as a user does, with files in the system's cache and modules in compiled form, and waits for the
first byte of its answer; the answer goes on to --tokens tokens. Medians over the rounds; `thrifty --help` beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
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
