"""`thrifty serve`: what its command line means, without a server."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from thrifty.cli.main import CommandFiles
from thrifty.cli.shared.served_models import served_adapters, served_models
from thrifty.serving.served_model import ModelSource
from thrifty.serving.settings import ServerSettings
from thrifty.serving.tightening.ladder import Ladder

DOCS = Path(__file__).parents[3] / "docs" / "serving.md"


def test_one_model_is_known_by_its_name_and_several_by_theirs(tmp_path: object) -> None:
    assert served_models("smollm2-135m", [], None) == {"smollm2-135m": "smollm2-135m"}
    assert served_models("smollm2-135m", [], "chat") == {"chat": "smollm2-135m"}
    assert served_models(str(tmp_path), [], None) == {str(tmp_path).rpartition("/")[2]: str(tmp_path)}
    assert served_models(None, ["chat=a/b", "code=c=d"], None) == {"chat": "a/b", "code": "c=d"}


@pytest.mark.parametrize(
    ("model", "named", "name", "told"),
    [
        (None, [], None, "no model is named"),
        ("a", ["b=c"], None, "not both"),
        (None, ["b"], None, "NAME=MODEL"),
        (None, ["=b"], None, "NAME=MODEL"),
        (None, ["a=b", "a=c"], None, "twice"),
        (None, ["a=b"], "c", "--name"),
    ],
)
def test_what_cannot_be_meant_is_said(model: str | None, named: list[str], name: str | None, told: str) -> None:
    with pytest.raises(typer.BadParameter, match=told):
        served_models(model, named, name)


def test_adapters_belong_to_their_models(tmp_path: Path) -> None:
    assert served_adapters([f"sql={tmp_path}"], ["chat"]) == {"chat": {"sql": tmp_path}}
    assert served_adapters([f"chat:sql={tmp_path}"], ["chat", "code"]) == {"chat": {"sql": tmp_path}, "code": {}}
    assert served_adapters([f"a:b:sql={tmp_path}"], ["a:b"]) == {"a:b": {"sql": tmp_path}}


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (["sql"], "NAME=FOLDER"),
        (["sql={}"], "of which model"),
        (["chta:sql={}"], "Did you mean 'chat'"),
        (["chat:={}"], "a name of its own"),
        (["chat:sql={}", "chat:sql={}"], "a name of its own"),
        (["chat:sql={}/nothing"], "there is no folder"),
    ],
)
def test_an_adapter_that_cannot_be_meant_is_said(tmp_path: Path, named: list[str], told: str) -> None:
    with pytest.raises(typer.BadParameter, match=told):
        served_adapters([pair.format(tmp_path) for pair in named], ["chat", "code"])


def test_every_flag_is_in_the_docs() -> None:
    told = set(re.findall(r"--[a-z-]+", DOCS.read_text(encoding="utf-8")))
    flags = [{*flag.opts, *flag.secondary_opts} for flag in CommandFiles()["serve"].params if flag.opts[0][:1] == "-"]
    assert len(flags) > 30 and [names for names in flags if not names & told and "--help" not in names] == []


def test_every_flag_reaches_the_server_or_its_engine(
    thrifty: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shelves: list[tuple[ServerSettings, list[ModelSource], dict[str, Any]]] = []
    engines: list[dict[str, Any]] = []
    served: list[Any] = []
    monkeypatch.setattr(
        "thrifty.api.open_engine", lambda path, recipe, **named: engines.append({"path": path, **named})
    )
    monkeypatch.setattr("thrifty.serving.run.serve", lambda shelf, listening: served.append(shelf))
    monkeypatch.setattr(
        "thrifty.serving.model_shelf.ModelShelf",
        lambda settings, sources, **named: shelves.append((settings, sources, named)),
    )
    words = (
        "--host ::1 --port 9 --api-key k --public --context 77 --batch 3 --queue 5 --prefill-slice 7 --drain 11",
        "--traces --model a=recall-2m --model b=smollm2-135m --model-room 13MB --no-request-recipes",
        "--request-technique kivi --draft recall-2m",
        "--request-cache-memory 19MB --key-requests 23 --conversation-disk 0 --session-bytes 29MB --memory 31MB",
        "--threads 1 --reference --no-copy --priority 17 --tighten-limit 1 --tighten-below 0.3 --tighten-wait 2.5",
    )
    mild, strong = recipe(tmp_path / "mild.toml", bits=4), recipe(tmp_path / "strong.toml", bits=2)
    folders = ["--adapters-from", str(tmp_path), "--session-folder", str(tmp_path), "--adapter", f"b:sql={tmp_path}"]
    folders += ["--tighten", str(mild), "--tighten", str(strong)]
    assert thrifty("serve", *" ".join(words).split(), *folders).code == 0 and len(served) == 1
    ((settings, sources, shared),) = shelves
    assert settings == ServerSettings(
        host="::1", port=9, api_keys=("k",), public=True, traces=True, drain_seconds=11.0, model_room=13_000_000,
        adapter_folder=tmp_path, session_folder=tmp_path, request_recipes=False, request_techniques=("kivi",),
        request_cache_memory=19_000_000, priority=17, key_requests=23,
        tighten=Ladder(
            rungs=(({"technique": "kivi", "bits": 4},), ({"technique": "kivi", "bits": 2},)), limit=1, free_share=0.3,
            wait_seconds=2.5,
        ),
    )  # fmt: skip
    assert [(source.name, source.adapters) for source in sources] == [("a", {}), ("b", {"sql": tmp_path})]
    assert shared == {"memory": 31_000_000, "preload": False}

    def fits(weights: int) -> None: ...

    sources[1].open(fits)
    assert engines == [{
        "path": "smollm2-135m", "fits": fits, "memory": 31_000_000, "process_memory": None, "context": 77,
        "native": False, "threads": 1, "copy": False, "batch": 3, "queue": 5, "prefill_slice_ms": 7.0,
        "drafts": ["recall-2m"], "conversation_disk": None, "session_bytes": 29_000_000,
    }]  # fmt: skip


def recipe(path: Path, stage: str = "cache", **options: object) -> Path:
    """A recipe of one technique."""
    technique = {"cache": "kivi", "weights": "rtn"}[stage]
    path.write_text(f'[[{stage}]]\ntechnique = "{technique}"\n' + "".join(f"{k} = {v}\n" for k, v in options.items()))
    return path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--tighten-limit 1", "give --tighten RECIPE too"),
        ("--tighten {cache}", "no bound: give --memory"),
        ("--tighten {cache} --tighten-wait 2 --tighten-below 0.3", "a share of a bound on memory"),
        ("--memory 99MB --tighten {cache} --tighten-limit 2", "--tighten-limit is 2"),
        ("--memory 99MB --tighten {cache} --tighten-below 1.5", "--tighten-below is 1.5"),
        ("--memory 99MB --tighten {weights}", "leave them out"),
        ("--memory 99MB --tighten {empty}", "has no [[cache]]"),
        ("--memory 99MB --tighten {cache}x", "cannot read recipe"),
    ],
)
def test_a_ladder_that_cannot_be_meant_is_said_before_anything_is_served(
    thrifty: Callable[..., Any], tmp_path: Path, words: str, told: str
) -> None:
    (tmp_path / "empty.toml").write_text("")
    files = {
        "cache": recipe(tmp_path / "cache.toml", bits=4),
        "weights": recipe(tmp_path / "weights.toml", "weights", bits=4),
        "empty": tmp_path / "empty.toml",
    }
    found = thrifty("serve", "--model", "a=no-such-model", *words.format(**files).split())
    assert found.code != 0 and told in " ".join(found.message.split()), found.message


@pytest.mark.parametrize("flag", ["--conversation-disk", "--session-bytes", "--model-room", "--request-cache-memory"])
def test_a_size_that_is_none_is_said_before_anything_is_served(thrifty: Callable[..., Any], flag: str) -> None:
    found = thrifty("serve", "--model", "a=no-such-model", flag, "5XB")
    assert found.code == 2 and "'5XB' is not a size" in found.message
