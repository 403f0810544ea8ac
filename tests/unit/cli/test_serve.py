"""`thrifty serve`: what its command line means, without a server."""

from __future__ import annotations

import pytest
import typer

from thrifty.cli.commands.serve import served_models


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
