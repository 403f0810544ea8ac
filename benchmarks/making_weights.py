"""What making the weights of `thrifty fit`'s techniques costs, as multiples of round-to-nearest, by CPU seconds.

python benchmarks/making_weights.py [--model smollm2-135m] [--only awq,gptq]

A technique runs on one layer and on two; the difference is a layer, the rest what it does once (a search, gradients),
told in passes of the calibration text through the model. The figures are those of `frontier.made_weights.COSTS`.
"""

from __future__ import annotations

import argparse
import json
import time

from thrifty import models
from thrifty.frontier.made_weights import MADE
from thrifty.models.model import Model
from thrifty.recipe import Recipe
from thrifty.weights.calibration import CalibrationSet, default_calibration, seen
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import prepare


def cpu_seconds(model: Model, table: dict[str, object], layers: list[int], text: CalibrationSet) -> float:
    """Of one run of a technique on some layers."""
    techniques = Recipe(weights=[table | {"layers": layers}]).techniques("weights")
    began = time.process_time()
    prepare(model, techniques, calibration=text, errors=False)
    return time.process_time() - began


def pass_seconds(model: Model, text: CalibrationSet) -> float:
    """Of the calibration text through all layers."""
    name = "embedding" if model.config.tied_embeddings else "head"
    began = time.process_time()
    _ = seen(model, text, "benchmark")(LinearInfo(name, model.head)).inputs
    return time.process_time() - began


def main() -> None:
    """A line of JSON for each technique."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", help="techniques, comma-separated; all without")
    asked = parser.parse_args()
    model = models.load(asked.model)
    text = default_calibration(model)
    whole = pass_seconds(model, text)
    rounding = cpu_seconds(model, {"technique": "rtn"}, [0, 1], text) / 2
    print(json.dumps({"technique": "rtn", "layer_seconds": round(rounding, 3), "pass_seconds": round(whole, 2)}))
    for table in MADE:
        if asked.only and str(table["technique"]) not in asked.only.split(","):
            continue
        one, two = (cpu_seconds(model, dict(table), layers, text) for layers in ([0], [0, 1]))
        layer = max(two - one, 0.0)
        found = {"rounding": round(layer / rounding, 1), "passes": round(max(one - layer, 0.0) / whole, 1)}
        print(json.dumps({**table, "layer_seconds": round(layer, 2), **found}), flush=True)


if __name__ == "__main__":
    main()
