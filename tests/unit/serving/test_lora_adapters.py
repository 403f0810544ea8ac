"""Adapters as models: `base:adapter`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.lora_files import write_lora
from tests.tiny import BOS, tiny_config, tiny_model
from tests.unit.serving.live import Shelf, chat_body, get, post, shelf

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.models.adapters import Adapter, adaptable
from thrifty.serving.served_model import Fits, ModelSource

CHAT = "/v1/chat/completions"


def adapter(seed: int) -> Adapter:
    draws = np.random.default_rng(seed)
    weights = {
        name: (draws.normal(size=(4, shape[1])).astype(np.float32), draws.normal(size=(shape[0], 4)).astype(np.float32))
        for name, shape in adaptable(tiny_config()).items()
        if name.endswith(("query", "value"))
    }
    return Adapter(weights, scale=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("sql", "poem")):
        write_lora(place / name, adapter(seed), rank=4, alpha=2.0)
    (place / "empty").mkdir()
    return place


def opened(fits: Fits) -> Engine:
    return Engine(tiny_model(packed=True), memory="24MB", threads=1, batch=8)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Shelf]:
    sources = [ModelSource("tiny", opened, {"sql": folder / "sql"}), ModelSource("plain", opened)]
    with shelf(sources, adapter_folder=folder) as running:
        yield running


def ask(server: Shelf, model: str, **fields: Any) -> str:
    answer = post(server, CHAT, json=chat_body(model=model, max_tokens=24, ignore_eos=True, **fields))
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    return str(answer.json()["choices"][0]["message"]["content"])


def expected(seed: int | None) -> str:
    """What an engine with the adapter alone answers."""
    engine = Engine(tiny_model(packed=True), threads=1, adapters={} if seed is None else {"own": adapter(seed)})
    try:
        prompt = [BOS, *b"user: hello\nassistant: "]
        sampling = SamplingParameters(max_tokens=24, ignore_eos=True)
        request = Request(prompt=prompt, sampling=sampling, adapter=None if seed is None else "own")
        return engine.submit(request).result().text
    finally:
        engine.close()


def test_an_adapter_is_a_model_of_its_own(server: Shelf) -> None:
    assert ask(server, "tiny:sql") == expected(0) != expected(None)
    assert ask(server, "tiny") == expected(None) == ask(server, "plain")
    entries = {entry["id"]: entry for entry in get(server, "/v1/models").json()["data"]}
    assert list(entries) == ["tiny", "tiny:sql", "plain"]
    assert entries["tiny:sql"]["parent"] == "tiny" and "parent" not in entries["tiny"]
    assert entries["tiny:sql"]["loaded"] and entries["tiny:sql"]["max_model_len"] == 4096
    assert 'thrifty:memory_bytes{model_name="tiny",owner="adapters"}' in get(server, "/metrics").text


def test_an_adapter_that_is_not_there_is_a_404_with_the_nearest_name(server: Shelf) -> None:
    for name, near in (("tiny:sqll", "tiny:sql"), ("plain:sql", "plain")):
        answer = post(server, CHAT, json=chat_body(model=name))
        assert answer.status_code == 404 and f"Did you mean '{near}'?" in answer.json()["error"]["message"]


def test_embeddings_are_the_base_models(server: Shelf) -> None:
    answer = post(server, "/v1/embeddings", json={"model": "tiny:sql", "input": "a"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "model"


def test_adapters_are_loaded_and_unloaded_where_the_operator_said_so(server: Shelf) -> None:
    load = {"lora_name": "verse", "lora_path": "poem", "model": "plain"}
    assert post(server, "/v1/load_lora_adapter", json=load).json() == {"id": "plain:verse", "parent": "plain"}
    assert ask(server, "plain:verse") == expected(1)
    assert post(server, "/v1/load_lora_adapter", json=load).status_code == 400, "the name is taken"
    answer = post(server, "/v1/unload_lora_adapter", json={"lora_name": "plain:verse"})
    assert answer.json() == {"id": "plain:verse"}
    assert post(server, CHAT, json=chat_body(model="plain:verse")).status_code == 404
    assert post(server, "/v1/unload_lora_adapter", json={"lora_name": "plain"}).status_code == 400


@pytest.mark.parametrize("path", ["../adapters", "/etc", "poem/", "pom", "", "."])
def test_a_request_names_a_folder_and_no_path(server: Shelf, path: str) -> None:
    answer = post(server, "/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": path, "model": "plain"})
    assert answer.status_code == 404 and answer.json()["error"]["param"] == "lora_path"


def test_a_folder_that_is_no_adapter_is_refused_and_nothing_is_served(server: Shelf) -> None:
    answer = post(server, "/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "empty", "model": "plain"})
    assert answer.status_code == 400 and "adapter_config.json" in answer.json()["error"]["message"]
    assert post(server, CHAT, json=chat_body(model="plain:x")).status_code == 404


def test_an_adapter_that_vanished_stops_no_model(tmp_path: Path) -> None:
    write_lora(tmp_path / "sql", adapter(0), rank=4, alpha=2.0)
    with shelf([ModelSource("tiny", opened)], adapter_folder=tmp_path) as running:
        body = {"lora_name": "own", "lora_path": "sql"}
        assert post(running, "/v1/load_lora_adapter", json=body).status_code == 200
        shutil.rmtree(tmp_path / "sql")
        assert ask(running, "tiny:own") == expected(0)
        running.models.named("tiny").served.engine._failure = RuntimeError("broken")
        assert ask(running, "tiny") == expected(None)
        answer = post(running, CHAT, json=chat_body(model="tiny:own"))
        assert answer.status_code == 400 and "no adapter 'own'" in answer.text
        unload = {"lora_name": "tiny:own"}
        assert post(running, "/v1/unload_lora_adapter", json=unload).status_code == 200
        assert post(running, CHAT, json=chat_body(model="tiny:own")).status_code == 404


def test_without_the_operators_folder_nothing_is_loaded() -> None:
    with shelf([ModelSource("tiny", opened)]) as running:
        body = {"lora_name": "x", "lora_path": "poem"}
        assert post(running, "/v1/load_lora_adapter", json=body).status_code in (404, 405)
