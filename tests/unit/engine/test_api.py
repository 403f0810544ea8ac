from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import BOS

from thrifty import Thrifty
from thrifty.errors import PromptError, RecipeError
from thrifty.models.model import Model
from thrifty.recipe import Recipe

OPTIONS: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True}


@pytest.fixture
def thrifty(plain: Model) -> Any:
    with Thrifty(plain, queue=4) as opened:
        yield opened


def test_a_text_a_list_and_token_ids(thrifty: Thrifty) -> None:
    one = thrifty.generate("hello", **OPTIONS)
    assert one.finish_reason == "length"
    assert len(one.token_ids) == 8
    assert thrifty.generate([104, 101, 108, 108, 111], **OPTIONS).token_ids == one.token_ids
    batch = thrifty.generate(["hello", "other", "hello"], **OPTIONS)
    assert [result.token_ids for result in batch] == [one.token_ids, batch[1].token_ids, one.token_ids]
    assert len(thrifty.generate(["hello"] * 15, **OPTIONS)) == 15, "more prompts than the queue holds"


def test_streams_are_the_text(thrifty: Thrifty) -> None:
    assert "".join(thrifty.generate("hello", stream=True, **OPTIONS)) == thrifty.generate("hello", **OPTIONS).text
    with pytest.raises(PromptError, match="stream=True takes one prompt; the list has 2"):
        thrifty.generate(["a", "b"], stream=True)  # type: ignore[call-overload]


def test_chat_goes_through_the_template(thrifty: Thrifty) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert thrifty.encode(messages) == [BOS, *b"user: hi\nassistant: "]
    answer = thrifty.chat(messages, **OPTIONS)
    assert thrifty.chat("hi", **OPTIONS).token_ids == answer.token_ids
    assert "".join(thrifty.chat("hi", stream=True, **OPTIONS)) == answer.text


def test_samples_and_options_reach_the_engine(thrifty: Thrifty) -> None:
    result = thrifty.generate("hello", samples=3, temperature=1.0, seed=1, **OPTIONS)
    assert len({tuple(sample.token_ids) for sample in result.samples}) == 3
    assert len(thrifty.generate("hello", logprobs=2, **OPTIONS).logprobs) == 8
    with pytest.raises(PromptError, match="unknown sampling option 'max_token'. Did you mean 'max_tokens'?"):
        thrifty.generate("hello", max_token=3)


@pytest.mark.parametrize(("prompt", "unit"), [("", "character"), ([], "token")])
def test_an_empty_prompt_is_refused(thrifty: Thrifty, prompt: Any, unit: str) -> None:
    with pytest.raises(PromptError, match=f"the prompt is empty; it needs at least 1 {unit}"):
        thrifty.generate(prompt)


def test_a_failing_prompt_of_a_list_leaves_nothing_behind(thrifty: Thrifty) -> None:
    with pytest.raises(PromptError):
        thrifty.generate(["a", "b", "x" * 5000], max_tokens=3000)
    assert not thrifty.engine.busy


def test_recipes_as_tables_objects_and_files(plain: Model, tmp_path: Path) -> None:
    tables = {"cache": [{"technique": "kivi", "bits": 2}]}
    file = tmp_path / "recipe.toml"
    Recipe.from_document(tables).save(file)
    answers = []
    for recipe in (tables, Recipe.from_document(tables), file, str(file)):
        with Thrifty(plain, recipe=recipe) as opened:
            answers.append(opened.generate("a" * 300, **OPTIONS).token_ids)
    assert answers == [answers[0]] * 4
    with pytest.raises(RecipeError, match="Did you mean 'kivi'"):
        Thrifty(plain, recipe={"cache": [{"technique": "kiwi"}]})


def test_weight_techniques_of_a_recipe_are_applied(plain: Model) -> None:
    with Thrifty(plain, recipe={"weights": [{"technique": "rtn", "bits": 8}]}) as opened:
        assert opened.model.nbytes < plain.nbytes
        assert opened.engine.memory.ledger.bytes_of("weights") == opened.model.nbytes


def test_importing_thrifty_imports_no_torch() -> None:
    code = "import sys, thrifty; dir(thrifty); print('torch' in sys.modules or 'pydantic' in sys.modules)"
    path = str(Path(sys.modules["thrifty"].__file__ or "").parents[1])
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert found.stdout.strip() == "False", found.stderr
