"""A server in a process of its own, as users have it. The clients' environment knows nothing of Thrifty."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = os.environ.get("THRIFTY_PROGRAM", str(ROOT / ".venv" / "bin" / "thrifty"))
MODEL = os.environ.get("THRIFTY_CLIENTS_MODEL", "qwen2.5-coder-0.5b")
KEY = os.environ.get("THRIFTY_API_KEY", "a-key-of-the-tests")
RUNNING = os.environ.get("THRIFTY_CLIENTS_URL")


@dataclass(frozen=True)
class Served:
    """A running server. url: without a path."""

    url: str
    model: str = MODEL
    key: str = KEY

    @property
    def openai(self) -> str:
        """The base of OpenAI's API."""
        return f"{self.url}/v1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder's tests are `clients`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.clients)


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    """Loaded, with an API key; or the one that THRIFTY_CLIENTS_URL names, without a path."""
    if RUNNING is not None:
        yield Served(RUNNING)
        return
    words = [PROGRAM, "serve", MODEL, "--port", "0", "--context", "8192", "--api-key", KEY, "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            served = Served(str(told["url"]).removesuffix("/v1"))
            _wait(served, process)
            yield served
        finally:
            process.terminate()
            assert process.wait(60) == 0


def _wait(served: Served, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        if httpx.get(f"{served.url}/health").status_code == 200:
            return
        time.sleep(0.2)
    raise AssertionError("the server did not load its model")


@pytest.fixture(scope="session")
def tokenizer_directory(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that Hugging Face's classes load from the disk: load generators count tokens with one. One word is
    one token; what it counts is not the model's.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    directory = tmp_path_factory.mktemp("tokenizer")
    words = {"<unk>": 0, "</s>": 1} | {f"word{place}": place + 2 for place in range(1000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
