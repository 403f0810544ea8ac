"""Names of models that draft: parts of the model itself, or others."""

from __future__ import annotations

import pytest

from thrifty.decoding.draft_names import OwnDraft, own_draft
from thrifty.errors import RecipeError


def test_names_of_own_parts() -> None:
    assert own_draft("smollm2-135m") is None and own_draft("/a/layers:0") is None
    assert own_draft("layers:0-2,5") == OwnDraft((0, 1, 2, 5))
    assert own_draft("adapter:fast") == OwnDraft(None, "fast")
    assert own_draft("adapter:fast layers:1,3-4") == OwnDraft((1, 3, 4), "fast")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers:", "no range of layers"),
        ("layers:3-1", "no range of layers"),
        ("layers:0-2,2", "use rising ones"),
        ("layers:a", "no range of layers"),
        ("layers:0-99999999", "no range of layers"),
        ("adapter:", "names no adapter"),
        ("adapter:x heads:0", "unknown behind an adapter"),
    ],
)
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        own_draft(name)


def test_the_roofline_says_that_it_knows_no_own_layers() -> None:
    from thrifty.cli.commands.roofline import _draft
    from thrifty.errors import PromptError

    with pytest.raises(PromptError, match="runs parts of the model itself"):
        _draft("layers:0-1", None, 10, 1)  # type: ignore[arg-type]
