"""The text of an answer: decoded behind its prompt, in samples and forks too; stop strings see all that was said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.small_tokenizers import SPACE, sentence_piece
from tests.tiny import tiny_config, tiny_model

from thrifty.api import Thrifty
from thrifty.models.tokens.settings import TokenizerSettings
from thrifty.models.tokens.tokenizer import Tokenizer

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def thrifty() -> Iterator[Thrifty]:
    made = sentence_piece("prepend")
    model = tiny_model(config=tiny_config(layers=1, vocabulary_size=made.get_vocab_size()))
    model.tokenizer = Tokenizer(made.to_str(), TokenizerSettings(bos_id=1, eos_ids=(2,), add_bos=True))
    with Thrifty(model) as thrifty:
        yield thrifty


def token(thrifty: Thrifty, text: str) -> int:
    return int(thrifty.model.tokenizer.backend.token_to_id(text))


def test_the_first_space_of_a_continuation_stays(thrifty: Thrifty) -> None:
    paris = {token(thrifty, f"{SPACE}Paris"): 1000.0}
    assert thrifty.generate(PROMPT, max_tokens=2, logit_bias=paris).text == " Paris Paris"
    both = thrifty.generate(PROMPT, max_tokens=1, logit_bias=paris, samples=2).samples
    assert [sample.text for sample in both] == [" Paris", " Paris"]
    assert "".join(thrifty.generate(PROMPT, max_tokens=1, logit_bias=paris, stream=True)) == " Paris"
    assert thrifty.generate([1], max_tokens=2, logit_bias=paris).text == "Paris Paris", "at the beginning of a text"


def test_a_fork_goes_on_behind_its_parent(thrifty: Thrifty) -> None:
    parent = thrifty.submit([1], max_tokens=5, logit_bias={token(thrifty, "a"): 1000.0})
    thrifty.engine.step()
    child = parent.fork(forced=[token(thrifty, f"{SPACE}Paris")])
    assert child.result().text == " Paris"
    parent.cancel()


def test_stop_strings_see_the_first_space_and_control_tokens(thrifty: Thrifty) -> None:
    paris, end = token(thrifty, f"{SPACE}Paris"), token(thrifty, "</s>")
    found = thrifty.generate(PROMPT, max_tokens=4, logit_bias={paris: 1000.0}, stop=" Paris")
    assert (found.text, found.finish_reason, len(found.token_ids)) == ("", "stop", 1)
    found = thrifty.generate(PROMPT, max_tokens=4, logit_bias={end: 1000.0}, stop="</s>", ignore_eos=True)
    assert (found.text, found.finish_reason, len(found.token_ids)) == ("", "stop", 1)
