from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from array import array
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import BOS, ByteTokenizer

from thrifty import Thrifty, open_engine, open_model
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import BudgetError, PromptError, RecipeError, TemplateError, ThriftyError
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


IDS = [104, 101, 108, 108, 111]


@pytest.mark.parametrize(
    "prompt",
    [
        np.array(IDS),
        np.array(IDS, dtype=np.uint8),
        torch.tensor(IDS),
        list(np.array(IDS, dtype=np.int32)),
        list(torch.tensor(IDS)),
        tuple(IDS),
        array("i", IDS),
        deque(IDS),
    ],
    ids=lambda prompt: type(prompt).__name__,
)
def test_whole_numbers_of_every_library_are_token_ids(thrifty: Thrifty, prompt: Any) -> None:
    assert thrifty.generate(prompt, **OPTIONS).token_ids == thrifty.generate("hello", **OPTIONS).token_ids
    assert thrifty.encode(prompt) == IDS and type(thrifty.encode(prompt)[0]) is int
    assert Request(prompt=prompt).prompt == tuple(IDS)


@pytest.mark.parametrize("prompts", [np.array([IDS, IDS]), [np.array(IDS), "hello"], (IDS, tuple(IDS)), ["hello"] * 2])
def test_lists_of_prompts_of_every_kind(thrifty: Thrifty, prompts: Any) -> None:
    first, second = thrifty.generate(prompts, **OPTIONS)
    assert first.token_ids == second.token_ids == thrifty.generate(IDS, **OPTIONS).token_ids


MESSAGE = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "the prompt is None; use a text, a list or an array of token ids"),
        (5, "the prompt is 5 (int); use a text"),
        (b"abc", "the prompt is b'abc' (bytes); decode it to a text first"),
        (bytearray(b"abc"), "decode it to a text first"),
        ({1, 2}, "the prompt is {1, 2} (set); use a text"),
        (iter([1, 2]), "list_iterator); use a text"),
        ([1.5], "the prompt[0] = 1.5 (float) is no token id; use whole numbers"),
        ([1, True], "the prompt[1] = True (bool) is no token id"),
        ([1, "a"], "the prompt[1] = 'a' (str) is no token id"),
        ([1, None], "the prompt[1] = None is no token id"),
        (np.array([1.0, 2.0]), "the prompt[0] = 1.0 (float) is no token id"),
        (np.array([True]), "the prompt[0] = True (bool) is no token id"),
        (torch.tensor([[[1]]]), "is no token id"),
        ([-1], "the prompt names token -1; the vocabulary ends at"),
        ([MESSAGE], "messages go to chat(), which knows the model's template"),
        (MESSAGE, "messages go to chat()"),
        ([[MESSAGE]], "messages go to chat()"),
        ([b"abc"], "decode it to a text first"),
    ],
)
def test_what_is_no_prompt_is_refused_in_words(thrifty: Thrifty, prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=re.escape(message)):
        thrifty.generate(prompt, max_tokens=1)
    assert not thrifty.engine.busy


@pytest.mark.parametrize("messages", [None, 5, b"x", [65, 66], {}, [], MESSAGE, ["x"], {"a"}])
def test_what_is_no_conversation_is_refused_in_words(thrifty: Thrifty, messages: Any) -> None:
    with pytest.raises(TemplateError, match=r"Messages must be a list|list of messages is empty|must be an object"):
        thrifty.chat(messages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": b"a"}, "decode it to a text"),
        ({"prompt": "12"}, "the prompt = '12' (str) holds no token ids"),
        ({"forced": [1.5]}, "forced[0] = 1.5 (float) is no token id"),
        ({"samples": 1.5}, "samples = 1.5 (float) is not a whole number; use 1 or more"),
        ({"samples": True}, "samples = True (bool) is not a whole number"),
        ({"cache_bytes": "1"}, "cache_bytes = '1' (str) is not a whole number"),
        ({"logits": "no"}, "logits = 'no' (str) is out of range; use True or False"),
        ({"salt": 3}, "salt = 3 (int) is no text"),
        ({"sampling": {}}, "sampling = {} (dict); use SamplingParameters"),
    ],
)
def test_a_request_names_the_field_of_a_wrong_type(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=re.escape(message)):
        Request(**{"prompt": [1], **options})


def test_the_default_length_shrinks_to_the_room(plain: Model) -> None:
    with Thrifty(plain, context=300) as opened:
        assert len(opened.generate([65] * 100, ignore_eos=True).token_ids) == 200
        assert len(opened.generate([65] * 299, ignore_eos=True).token_ids) == 1
        assert len(opened.generate([65] * 290, max_tokens=None, ignore_eos=True).token_ids) == 10
        with pytest.raises(
            PromptError, match="max_tokens = 256 after a prompt of 100 tokens exceeds the context of 300"
        ):
            opened.generate([65] * 100, max_tokens=256)
        sampled = opened.generate([65] * 280, samples=2, temperature=1.0, seed=1, ignore_eos=True)
        assert [len(sample.token_ids) for sample in sampled.samples] == [20, 20]
        handle = opened.submit([65] * 270, max_tokens=30, ignore_eos=True)
        next(iter(handle))
        assert len(handle.fork(SamplingParameters(ignore_eos=True)).result().token_ids) == 29


def test_the_default_length_shrinks_to_the_bytes(plain: Model) -> None:
    with Thrifty(plain) as opened:
        need = opened.engine.memory.request_bytes((), 1000, 1100)
        answer = opened.generate([65] * 1000, cache_memory=need, ignore_eos=True)
        assert 100 <= len(answer.token_ids) < 256
        with pytest.raises(BudgetError, match="use cache_bytes"):
            opened.generate([65] * 1000, cache_memory=need, max_tokens=256)
        budget = opened.engine.memory.ledger.bytes_of("weights") + opened.engine.memory.workspace
        peak = opened.engine.memory.footprint((), 1000, 1100, 1).peak_bytes
    with Thrifty(plain, memory=budget + peak) as opened:
        assert 64 <= len(opened.generate([65] * 1000, ignore_eos=True).token_ids) < 256
        with pytest.raises(BudgetError, match="at most"):
            opened.generate([65] * 1000, max_tokens=256)


class TemplateWords(ByteTokenizer):
    """Keeps what it is asked to encode."""

    def encode_chat(self, messages: Any, **options: Any) -> list[int]:
        self.options = options
        return super().encode_chat(messages)


def test_arguments_of_the_template_go_through_chat(plain: Model) -> None:
    words = TemplateWords()
    with Thrifty(dataclasses.replace(plain, tokenizer=words)) as opened:
        opened.chat("x", **OPTIONS)
        assert words.options == {}
        tools = [{"name": "f"}]
        opened.chat([MESSAGE], tools=tools, enable_thinking=False, template_arguments={"effort": "low"}, **OPTIONS)
        assert words.options == {"tools": tools, "enable_thinking": False, "effort": "low"}
        opened.submit([MESSAGE], documents=[], control_tokens_in_messages=True, **OPTIONS)
        assert words.options == {"documents": [], "control_tokens_in_messages": True}
        with pytest.raises(PromptError, match="tools is for a chat template; give chat\\(\\) messages"):
            opened.generate("x", tools=tools)
        with pytest.raises(PromptError, match="template_arguments = 3 \\(int\\) is no mapping"):
            opened.chat("x", template_arguments=3)
        with pytest.raises(PromptError, match="tools is given twice"):
            opened.chat("x", tools=tools, template_arguments={"tools": tools})
        with pytest.raises(PromptError, match="control_tokens_in_messages = 'no'"):
            opened.chat("x", control_tokens_in_messages="no")


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


def test_the_front_door_makes_engines_of_models_and_recipes(packed: Model) -> None:
    recipe = Recipe.from_document({"weights": [{"technique": "rtn"}], "cache": [{"technique": "kivi", "bits": 4}]})
    engine = open_engine(packed, recipe, context=200, batch=2, memory="60MB")
    assert "+rtn(" in engine.model.version and engine.probe().context == 200
    assert engine.probe().budget == 60_000_000
    handle = engine.submit(Request(prompt=list(range(150))))
    while not handle.usage.generated_tokens:
        engine.step()
    cache = engine.cache_of(handle)
    assert cache is not None and any(policy.name == "kivi" for policy in cache.policies)
    engine.close()
    assert open_model(packed) is packed is open_model(packed, Recipe())
    assert open_model(packed, recipe).version == engine.model.version


def test_options_are_checked_before_a_model_is_loaded(packed: Model) -> None:
    for options in ({"threads": "2"}, {"memory": "much"}, {"process_memory": 0}, {"context": 1.5}, {"native": 2}):
        with pytest.raises(ThriftyError, match=next(iter(options))):
            open_engine("no such model", **options)
    with pytest.raises(PromptError, match="model = 5 \\(int\\) is no model"):
        open_model(5)  # type: ignore[arg-type]

    class Own(Engine):
        pass

    made = open_engine(packed, make=Own, prefix_tree=False)
    assert type(made) is Own and made.memory.cache.tree is None
    made.close()
