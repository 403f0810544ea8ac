"""The recall model that the package carries: its file, its words, its logits, and that it recalls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from thrifty import reference
from thrifty.engine.engine import Engine
from thrifty.evaluation import tasks
from thrifty.evaluation.tasks._haystack import NAMES
from thrifty.models import load
from thrifty.models.embedded import MODELS, find
from thrifty.models.model import Model
from thrifty.models.peek import config_of
from thrifty.models.store.content_key import file_digest
from thrifty.reference.loading import build

pytestmark = pytest.mark.model

NAME = "recall-2m"
TEXT = "The secret number of Lisbon is 4821.\n\nWhat is the secret number of Oslo?\nThe secret number of Oslo is 17"


@pytest.fixture(scope="module")
def model() -> Model:
    return load(NAME)


@pytest.fixture(scope="module")
def engine(model: Model) -> Iterator[Engine]:
    engine = Engine(model, prefix_tree=False)
    yield engine
    engine.close()


def test_the_file_is_the_known_one_and_needs_no_download() -> None:
    folder = find(MODELS[NAME])
    assert folder is not None
    assert file_digest(folder / MODELS[NAME].file) == MODELS[NAME].sha256
    assert MODELS[NAME].nbytes < 10 << 20 and MODELS[NAME].download_bytes == 0


def test_text_comes_back_and_digits_stand_alone(model: Model) -> None:
    tokenizer = model.tokenizer
    ids = tokenizer.encode(TEXT)
    assert ids[0] == tokenizer.bos_id and tokenizer.decode(ids) == TEXT
    assert [tokenizer.backend.id_to_token(one) for one in tokenizer.encode(" is 482.", add_bos=False)] == [
        "\u2581is", "\u25814", "8", "2", ".",
    ]  # fmt: skip
    assert all(len(tokenizer.encode(f" {name}", add_bos=False)) == 1 for name in NAMES)


def test_the_engine_the_reference_and_transformers_give_the_same_logits(model: Model) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = transformers.LlamaForCausalLM.from_pretrained(str(find(MODELS[NAME])), dtype=torch.float32)
    ids = model.tokenizer.encode(TEXT)
    with torch.no_grad():
        expected = oracle(torch.tensor([ids])).logits[0]
    plain = reference.load(NAME, dtype=torch.float32).logits(ids)
    torch.testing.assert_close(plain, expected, atol=1e-3, rtol=1e-4)
    packed = build(model).logits(ids)
    assert (packed.argmax(-1) == expected.argmax(-1)).float().mean() > 0.95
    assert (packed - expected).abs().mean() < 0.1


def test_it_runs_natively_and_its_heads_are_grouped(model: Model, engine: Engine) -> None:
    assert engine.runner.name == "native"
    assert model.config.kv_heads >= 4 and model.config.heads == 2 * model.config.kv_heads
    assert config_of(NAME) == model.config


@pytest.mark.parametrize(("name", "least"), [("recall-many:keys=8", 0.95), ("multi-turn", 0.9)])
def test_it_recalls_from_a_thousand_tokens(engine: Engine, name: str, least: float) -> None:
    task = tasks.parse(name, length=1024)
    items = task.items(engine.model.tokenizer, 10, seed=0)
    scores = [task.run(engine, item, []).score for item in items]
    assert sum(scores) / len(scores) >= least
