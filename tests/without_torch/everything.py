"""Every cache technique alone, and eight recipes in one batch: run where torch cannot be imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from thrifty import registry
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.evaluation.text import held_out
from thrifty.models import load

STEPS = 66  # one period of a policy, and two tokens after it
MEASURED = {"headkv", "headkv-r2"}  # need scores of the model's heads first


def main(name: str) -> None:
    """Answer with each, then together; print what was answered."""
    model = load(name)
    recipes = {technique: [{"technique": technique}] for technique in registry.names("cache")}
    recipes = {technique: recipe for technique, recipe in recipes.items() if technique not in MEASURED}
    if len(model.config.layers) < 6:
        del recipes["kvmerger"]  # leaves three layers whole
    engine = Engine(model, prefix_tree=False, prefill_slice_ms=0)
    try:
        alone = {technique: answer(engine, model, place, recipe) for place, (technique, recipe) in listed(recipes)}
        batch = dict(list(recipes.items())[:8])
        handles = [engine.submit(request(model, place, recipe)) for place, (_, recipe) in listed(batch)]
        for technique, handle in zip(batch, handles, strict=True):
            assert list(handle.result().token_ids) == alone[technique], technique
    finally:
        engine.close()
    assert sys.modules["torch"] is None
    print(f"{len(recipes)} techniques, {len(batch)} in one batch")


def listed(recipes: Mapping[str, Any]) -> list[tuple[int, tuple[str, Any]]]:
    """Recipes with their places."""
    return list(enumerate(recipes.items()))


def request(model: Any, place: int, recipe: Sequence[Mapping[str, Any]]) -> Request:
    """A prompt of its own for each place."""
    sampling = SamplingParameters(max_tokens=STEPS, ignore_eos=True)
    return Request(prompt=held_out(model.tokenizer, 128 + 16 * place, place), sampling=sampling, cache=recipe)


def answer(engine: Engine, model: Any, place: int, recipe: Sequence[Mapping[str, Any]]) -> list[int]:
    """The tokens of one answer."""
    return list(engine.submit(request(model, place, recipe)).result().token_ids)


if __name__ == "__main__":
    main(sys.argv[1])
