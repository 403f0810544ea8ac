"""A model's config without its weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.checkpoint import write_checkpoint

from thrifty.errors import CheckpointError, DownloadError
from thrifty.models import hub
from thrifty.models.peek import config_of


def test_a_folder_without_weights_has_a_config(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "llama")
    (folder / "model.safetensors").unlink()
    config = config_of(folder)
    assert config is not None and config.context_length == 4096 and config.eos_ids == (257,)


def test_files_that_hold_both_are_left_to_the_loader(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert config_of(file) is None and config_of("smollm2-135m") is None


def test_of_a_hub_id_only_the_config_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "llama")
    asked = []

    def download(repository: str, file: str, local_files_only: bool) -> str:
        asked.append((repository, file, local_files_only))
        return str(folder / file)

    library: Any = SimpleNamespace(hf_hub_download=download)
    monkeypatch.setattr(hub, "_ask", lambda repository: {"config.json": None})
    monkeypatch.setattr(hub, "_tried", lambda repository, action: action(library))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    config = config_of("someone/model")
    assert config is not None and len(config.layers) == 2
    assert asked == [("someone/model", "config.json", False)]


def test_offline_a_hub_id_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DownloadError, match=r"someone/no-such-model could not be fetched .*\(offline mode is set\)"):
        config_of("someone/no-such-model")


def test_a_name_that_means_nothing_says_the_nearest() -> None:
    with pytest.raises(CheckpointError, match="Did you mean 'smollm2-135m'"):
        config_of("smolm2-135m")
