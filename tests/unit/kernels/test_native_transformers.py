"""Native plans of every family against transformers: tiny random checkpoints, everything in fp32."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.kernels.native_pages import ISAS, native, using
from tests.unit.kernels.native_plans import TensorPlan, feed
from tests.unit.reference.test_decoder_parity import FAMILIES, TOLERANCE, oracle

from thrifty.engine.plan.plan import compile_plan
from thrifty.models.huggingface.source import HuggingFaceSource
from thrifty.models.loading import assemble

LAYER_NORMS = ("starcoder2", "stablelm")


@torch.no_grad()
def check(name: str, folder: Path, isa: str | None) -> None:
    model = oracle(*FAMILIES[name])
    model.save_pretrained(folder)
    made = assemble(HuggingFaceSource(folder), np.dtype(np.float32))
    ids = torch.randint(3, 97, (70,), dtype=torch.int32, generator=torch.Generator().manual_seed(7))
    wanted = model(ids[None].long()).logits[0]
    native()
    with nullcontext() if isa is None else using(isa):
        plan = TensorPlan(compile_plan(made, 64))
        logits = feed(plan, made.config, ids, [40, 1, 1, 20, 8], "f32")
        assert (logits - wanted).abs().max() < TOLERANCE
        assert torch.equal(feed(plan, made.config, ids, [1] * 6 + [64], "f32"), logits)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.long
def test_family_equals_transformers(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, None)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", LAYER_NORMS)
def test_layer_norms_and_plain_mlps_on_every_instruction_set(name: str, isa: str, tmp_path: Path) -> None:
    check(name, tmp_path, isa)
