"""A model's vocabulary as `llguidance` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thrifty import extras
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from llguidance import LLTokenizer


TOKEN_BYTES = 200
"""What a token takes in the library: measured as 170 to 280 on vocabularies of 49 k to 262 k tokens."""


class GrammarVocabulary:
    """native: the library's own object. size: rows of the model's logits. ends: ids that end an answer. nbytes: about
    what it takes.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        """Raises MissingExtra where `llguidance` is not installed, CheckpointError where tokens have no bytes of their
        own, PromptError where nothing ends an answer.
        """
        extras.require("llguidance", "grammar", "a grammar")
        from llguidance import LLTokenizer, TokenizerWrapper

        if not tokenizer.eos_ids:
            raise PromptError("this model has no token that ends an answer, so no grammar can; leave the grammar out")
        self.size, self.nbytes = size, size * TOKEN_BYTES
        self.ends = frozenset(tokenizer.eos_ids)
        own = _Vocabulary(tokenizer, size)
        wrapper = TokenizerWrapper(own)
        # No slices: for 152 k tokens they take 35 MB and a second, and save half a millisecond beside a forward pass.
        self.native: LLTokenizer = LLTokenizer(wrapper, n_vocab=size, eos_token=list(tokenizer.eos_ids), slices=[])
        own.tokens = wrapper.tokens = ()  # the library has copied them


class _Vocabulary:
    """What the library asks of a tokenizer, by the names that it asks for."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.eos_token_id = tokenizer.eos_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens: Sequence[bytes] = tokenizer.token_bytes(size)
        self.special_token_ids = sorted(token for token in tokenizer.special_ids if token < size)
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        """Token ids of a text that a grammar forces: never control tokens."""
        whole = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return list(self._tokenizer.encode(whole, add_bos=False, control=False))
