"""Text to token ids and back, for both kinds of vocabulary: byte-level, and SentencePiece with byte fallback."""

from __future__ import annotations

import operator
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from thrifty.errors import PromptError, TemplateError
from thrifty.models.tokens.backend import decoder_of, load_backend
from thrifty.models.tokens.ends import BRACKETS, MARKER
from thrifty.models.tokens.pieces import Maker, PieceDecoder, makers
from thrifty.models.tokens.settings import TokenizerSettings

if TYPE_CHECKING:
    import tokenizers

    from thrifty.models.chat.template import ChatTemplate
    from thrifty.models.tokens.control import ControlFree

Message = Mapping[str, Any]

MAX_ID = 1 << 31
TAIL = 16  # tokens before an answer that a decoder's steps can reach back to: a character's bytes, a word


class Tokenizer:
    """A tokenizer of a model. `definition` gives the text of its tokenizer.json; it is read on first use.

    Decoding maps every token to its bytes, so that a stream and a whole answer give the same text.
    """

    def __init__(self, definition: str | Callable[[], str], settings: TokenizerSettings) -> None:
        self._definition = definition
        self.settings = settings

    @property
    def definition(self) -> str:
        """The text of its tokenizer.json."""
        return self._definition if isinstance(self._definition, str) else self._definition()

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All ids that end an answer."""
        return self.settings.eos_ids

    @property
    def bos_id(self) -> int | None:
        """The id that begins text, or None."""
        return self.settings.bos_id

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` works."""
        return self.settings.chat_template is not None

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id that `decode` takes."""
        return max(self.settings.vocabulary_size, self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_bos: bool | None = None, control: bool = True) -> list[int]:
        """The ids of a text; special tokens that it spells out become their ids.

        add_bos: None follows the model. BOS is put in front once: not where the text already begins with it. control:
        False leaves the control tokens (`control_ids`) that the text spells out as text; other added tokens still
        count.
        Raises PromptError for what is no text, or cannot be written in UTF-8.
        """
        if not isinstance(text, str):
            raise PromptError(f"encode() takes a text, not {text!r:.60} ({type(text).__name__}).")
        return self.encode_parts([(text, control)], add_bos)

    def encode_parts(self, parts: Sequence[tuple[str, bool]], add_bos: bool | None = None) -> list[int]:
        """The ids of a text in parts, each with whether the control tokens that it spells out are meant.

        The text is encoded in one pass: where no control token is spelled out in a part that means none, or across
        parts, the ids are those of `encode` for the joined text. Raises as `encode` does.
        """
        parts = [("".join(text for text, _ in run), meant) for meant, run in groupby(parts, key=itemgetter(1))]
        text = "".join(part for part, _ in parts)
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise PromptError(f"The prompt cannot be written in UTF-8: {_fault(text)}.") from error
        ids: list[int] = encoding.ids
        if not all(meant for _, meant in parts) and not self.control_ids.isdisjoint(ids):
            from thrifty.models.tokens.control import all_meant

            ends = list(accumulate(len(part) for part, _ in parts))
            meant = [(end - len(part), end) for end, (part, means) in zip(ends, parts, strict=True) if means]
            if not all_meant(ids, encoding.offsets, self.control_ids, meant):
                ids = self._control_free.encode(parts)
        wanted = self.settings.add_bos if add_bos is None else add_bos
        if wanted and self.bos_id is not None and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True, after: Sequence[int] = ()) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD.

        after: the ids that these continue: a text's first space may be left out, that of its continuation never.
        Raises PromptError for an id outside the vocabulary, and for what is no token id.
        """
        stream = self.stream(skip_special, after)
        return "".join([*(stream.push(token) for token in _whole(ids)), stream.flush()])

    def stream(self, skip_special: bool = True, after: Sequence[int] = ()) -> TokenStream:
        """A decoder for one answer, token by token. after: see `decode`."""
        return TokenStream(self, skip_special, after)

    def apply_chat_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt that the model's chat template makes of `messages`. variables: what else the template sees.

        Raises TemplateError where the model has no template, or the template fails or refuses the messages.
        """
        given = {**self.special_tokens, "add_generation_prompt": add_generation_prompt, **variables}
        return str.__str__(self._template_for(variables).render(messages, given))

    def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        control_tokens_in_messages: bool = False,
        **arguments: Any,
    ) -> list[int]:
        """The ids of a conversation, with one BOS where the model wants one, whether or not the template wrote it.

        control_tokens_in_messages: False leaves control tokens that a message, a tool or a document spells out as text,
        so that it can neither close a turn nor open one; True makes them control tokens, as `encode` does.
        arguments: `tools`, `documents`, `enable_thinking` and what else the template reads; None is not given.
        Raises TemplateError as `apply_chat_template`, and for an argument that the template does not read.
        """
        from thrifty.models.chat.message_text import parts_of

        given = {**self.special_tokens, "add_generation_prompt": add_generation_prompt}
        text = self._template_for(arguments).render(messages, given, arguments)
        return self.encode_parts([(part, control_tokens_in_messages or not quoted) for part, quoted in parts_of(text)])

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """The texts that templates know as `bos_token`, `eos_token` and the like."""
        texts = {} if self.bos_id is None else {"bos_token": self._called(self.bos_id)}
        if self.eos_ids:
            texts["eos_token"] = self._called(self.eos_ids[0])
        if self.settings.pad_id is not None:
            texts["pad_token"] = self._called(self.settings.pad_id)
        return {**texts, **self.settings.special_tokens}

    @cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The `tokenizers` object. Raises CheckpointError where the definition is not valid."""
        return load_backend(self.definition)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of control tokens, which text output leaves out."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """What `encode(control=False)` makes of no text: special tokens, and of the other added tokens those that end
        an answer, or mark turns by their shape or in the chat template.
        """
        added = self.backend.get_added_tokens_decoder()
        template = self.settings.chat_template or ""
        marks = (
            token
            for token, entry in added.items()
            if MARKER.fullmatch(entry.content) or (BRACKETS.fullmatch(entry.content) and entry.content in template)
        )
        return self.special_ids.union(marks, (token for token in self.eos_ids if token in added))

    @cached_property
    def punctuation_ids(self) -> frozenset[int]:
        """The ids of tokens whose text, spaces aside, is nothing but characters of `string.punctuation`."""
        marks = frozenset(string.punctuation)
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        ids = [token for piece, token in vocabulary.items() if not marks.isdisjoint(piece)]
        texts = self.backend.decode_batch([[token] for token in ids], skip_special_tokens=False)
        chosen = (
            token for token, text in zip(ids, map(str.strip, texts), strict=True) if text and marks.issuperset(text)
        )
        return frozenset(chosen) - self.special_ids

    @cached_property
    def added_ids(self) -> frozenset[int]:
        """The ids of added tokens, special or not: their text is what they are called, never bytes."""
        return frozenset(self.backend.get_added_tokens_decoder())

    @cached_property
    def same_text(self) -> Mapping[int, int]:
        """For every id whose text an earlier token has too: that token, which stands for both in the library."""
        return dict(self.settings.duplicates)

    def absent_ids(self, size: int) -> frozenset[int]:
        """The ids below `size`, a model's own vocabulary, that are no token: rows that pad the model's matrices."""
        if (
            self.backend.get_vocab_size(with_added_tokens=True) == size
            and self.backend.id_to_token(size - 1) is not None
        ):
            return frozenset()
        return frozenset(
            token for token in range(size) if self.backend.id_to_token(self.same_text.get(token, token)) is None
        )

    def text_of(self, token: int) -> str | None:
        """What a token is called in the vocabulary, None for a row of the model without a token.

        Raises PromptError for an id outside the vocabulary.
        """
        known = 0 <= token < MAX_ID
        text: str | None = self.backend.id_to_token(self.same_text.get(token, token)) if known else None
        if text is None and not 0 <= token < self.vocabulary_size:
            last = self.vocabulary_size - 1
            raise PromptError(f"Token id {token} is outside this model's vocabulary, 0 to {last}.")
        return text

    def token_bytes(self, size: int) -> list[bytes]:
        """See `token_bytes.token_bytes`."""
        from thrifty.models.tokens.token_bytes import token_bytes

        return token_bytes(self, decoder_of(self.backend), size)

    def piece_decoder(self) -> PieceDecoder:
        """A new decoder for one stream. Raises CheckpointError for a decoder that is not supported."""
        return PieceDecoder(self._makers)

    @cached_property
    def _makers(self) -> list[Maker]:
        return makers(decoder_of(self.backend))

    @cached_property
    def _control_free(self) -> ControlFree:
        from thrifty.models.tokens.control import ControlFree

        return ControlFree(self.backend, self.control_ids)

    @cached_property
    def _template(self) -> ChatTemplate:
        from thrifty.models.chat.template import ChatTemplate

        if self.settings.chat_template is None:
            raise TemplateError("This model has no chat template; give it a plain prompt instead of messages.")
        return ChatTemplate(self.settings.chat_template)

    @cached_property
    def _tool_template(self) -> ChatTemplate | None:
        from thrifty.models.chat.template import ChatTemplate

        return None if self.settings.tool_template is None else ChatTemplate(self.settings.tool_template)

    def _template_for(self, variables: Mapping[str, Any]) -> ChatTemplate:
        """The template of a conversation with these variables: with tools it may be another."""
        template = self._tool_template if variables.get("tools") else None
        return self._template if template is None else template

    def _called(self, token: int) -> str:
        return self.backend.id_to_token(token) or ""


class TokenStream:
    """Text of one answer as its tokens come: what `push` returns is final and never half a character.

    The texts of all `push` calls and `flush` joined are what `Tokenizer.decode` gives.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool, after: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._same_text, self._added = tokenizer.same_text, tokenizer.added_ids
        self._decoder = tokenizer.piece_decoder()
        for token in self._heard(after):
            self.push(token)

    def push(self, token: int) -> str:
        """The text that is certain after this token. Raises PromptError for an id outside the vocabulary."""
        token = self._same_text.get(token, token)
        if token in self._skipped or (text := self._tokenizer.text_of(token)) is None:
            return ""
        return self._decoder.push(text, token in self._added)

    def hidden(self, token: int) -> str:
        """The text of a special token that `push` leaves out, else nothing."""
        token = self._tokenizer.same_text.get(token, token)
        return (self._tokenizer.text_of(token) or "") if token in self._skipped else ""

    def flush(self) -> str:
        """What is left at the end: U+FFFD where the last character was never finished. Ends the stream."""
        return self._decoder.finish()

    def _heard(self, after: Sequence[int]) -> list[int]:
        """The tokens before the answer that its text can depend on: whether there are any, and the last few."""
        known = (token for token in after if token not in self._skipped and token < self._tokenizer.vocabulary_size)
        first = list(islice(known, 1))
        tail = [token for token in after[-TAIL:] if token < self._tokenizer.vocabulary_size]
        return tail if len(after) <= TAIL else first + tail


def _whole(ids: Iterable[Any]) -> Iterator[int]:
    """Token ids of any library as Python's own numbers. Raises PromptError for what is none."""
    if isinstance(ids, (str, bytes, bytearray, memoryview)) or not hasattr(ids, "__iter__"):
        raise PromptError(f"decode() takes a list or an array of token ids, not {ids!r:.60} ({type(ids).__name__}).")
    for token in ids:
        try:
            if isinstance(token, bool):
                raise TypeError
            yield operator.index(token)
        except (TypeError, ValueError) as error:
            kind = type(token).__name__
            raise PromptError(f"decode() takes whole numbers as token ids, not {token!r:.60} ({kind}).") from error


def _fault(text: str) -> str:
    """What of a text is not Unicode."""
    place = next((index for index, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
    if place is None:
        return "it is not Unicode"
    return f"it holds half of a surrogate pair, U+{ord(text[place]):04X}, at place {place}"
