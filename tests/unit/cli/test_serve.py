"""`thrifty serve`: what its command line means, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from thrifty.cli.shared.served_models import served_adapters, served_models


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
