"""How the scores of a KV head's query heads are best reduced: recall and divergence by `group`.

    python benchmarks/query_group.py smollm2-135m

Recall of one key in ~480 tokens and mean KL on prose after 1024 compressed tokens, by technique, reduction and budget.
A table, then one JSON line. (The sum keeps what the mean keeps: it is the mean times the group.)
"""

from __future__ import annotations

import argparse
import json
import sys

from thrifty.claims.harness import rivals
from thrifty.claims.harness.context import Context
from thrifty.models.loading import load

TECHNIQUES = ("snapkv", "ada-kv")
REDUCTIONS = ("mean", "max")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--capacity", type=int, nargs="+", default=[128], help="slots a head")
    parser.add_argument("--window", type=int, default=32)
    arguments = parser.parse_args()
    tables = {
        f"{technique} {group} {capacity}": [
            {"technique": technique, "group": group, "capacity": capacity, "window": arguments.window}
        ]
        for technique in TECHNIQUES
        for capacity in arguments.capacity
        for group in REDUCTIONS
    }
    with Context(load(arguments.model), arguments.model, say=lambda text: print(text, file=sys.stderr)) as context:
        figures = rivals.recalls(context, {"full": [], **tables}) | rivals.divergences(context, tables)
    print(f"full cache: recall {figures['full_recall']:.0%}")
    print(f"{'technique, group, slots':28} {'recall':>8} {'KL':>8}")
    for name in tables:
        print(f"{name:28} {figures[f'{name}_recall']:8.0%} {figures[f'{name}_kl']:8.4f}")
    print(json.dumps({"model": arguments.model, "window": arguments.window} | figures))


if __name__ == "__main__":
    main()
