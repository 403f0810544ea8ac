"""The residual stream folded and turned: the same function in another basis."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from tests.unit.weights.conftest import CONFIGS, build

from thrifty.arrays import Floats
from thrifty.errors import RecipeError
from thrifty.models.model import Model
from thrifty.reference.loading import build as build_reference
from thrifty.weights.residual import fold_norms, rotate
from thrifty.weights.technique import Preparation, Technique, prepare
from thrifty.weights.techniques.rtn import RoundToNearest

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def logits(model: Model) -> Floats:
    return build_reference(model).logits(TOKENS).numpy()


def orthogonal(size: int) -> Floats:
    matrix = np.linalg.qr(np.random.default_rng(7).standard_normal((size, size)))[0]
    return matrix.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Turning(Technique):
    """Folds the norms and turns the stream by a random rotation."""

    name: ClassVar[str] = "turning"
    folds: bool = True

    def check(self, model: Model) -> None:
        pass

    def apply(self, model: Model, preparation: Preparation) -> None:
        preparation.before()
        if self.folds:
            fold_norms(model)
        rotate(model, orthogonal(model.config.hidden_size))


@pytest.mark.parametrize("name", ["plain", "untied-biased", "full-norm", "experts"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_turned_model_does_the_same(name: str, offset: float) -> None:
    model = build(dataclasses.replace(CONFIGS[name], norm_offset=offset))
    before, expected = {key: linear.dequantize() for key, linear in model.linears.items()}, logits(model)
    turned = prepare(model, [Turning()])
    assert np.abs(logits(turned) - expected).max() <= 1e-3 * np.abs(expected).max()
    assert all(not np.allclose(before[key], turned.linears[key].dequantize(), atol=1e-2) for key in before)
    assert not turned.config.tied_embeddings and "head" in turned.linears
    assert np.array_equal(logits(model), expected) and model.config.tied_embeddings == CONFIGS[name].tied_embeddings
    stored = prepare(model, [RoundToNearest(bits=8, embedding_bits=8), Turning()])
    entries = {entry.name: entry for entry in stored.report}
    assert {entry.format for entry in entries.values()} == {"f32"} and "head" in entries
    assert entries["head"].nbytes == stored.linears["head"].nbytes and entries["layers.0.mlp.down"].error > 0


def test_folding_alone_leaves_norms_of_one(plain: Model) -> None:
    plain.norms["layers.0.mlp_norm"][:3] = (0.0, -0.5, 1.0)
    folded = dataclasses.replace(plain, linears=dict(plain.linears), report=[])
    fold_norms(folded)
    assert all((norm == 1).all() for norm in folded.norms.values())
    assert np.abs(logits(folded) - logits(plain)).max() <= 2e-4 * np.abs(logits(plain)).max()
    assert not np.array_equal(plain.norms["final_norm"], folded.norms["final_norm"])


def test_what_does_not_turn_is_refused(plain: Model) -> None:
    for changes in ({"norm": "layer"}, {"post_norms": True}, {"pre_norms": False, "post_norms": True}):
        with pytest.raises(RecipeError, match="the residual stream turns where every norm is a root-mean-square norm"):
            prepare(build(dataclasses.replace(CONFIGS["plain"], **changes)), [Turning()])
    with pytest.raises(RecipeError, match="the norms still have weights, which a rotation would mix"):
        prepare(plain, [Turning(folds=False)])
    for wrong in (np.eye(4, dtype=np.float32), np.ones((96, 96), np.float32)):
        with pytest.raises(RecipeError, match=r"must be an orthogonal matrix \[96, 96\]"):
            rotate(plain, wrong)
    odd = dataclasses.replace(plain, linears={**plain.linears, "layers.0.memory.in": plain.linears["embedding"]})
    with pytest.raises(RecipeError, match=r"'layers.0.memory.in' is no linear of which is known"):
        fold_norms(odd)
