"""A loaded model: the parts of a decoder, its tokenizer, and what is known of how its weights are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty.arrays import Array, Floats, Integers
from thrifty.errors import CheckpointError, PromptError
from thrifty.formats.linear import DenseLinear, PackedLinear
from thrifty.models.assembly import Assembly, shape_of
from thrifty.models.config.model_config import ModelConfig
from thrifty.storage.mapped_file import MappedFile

if TYPE_CHECKING:
    from thrifty.models.tokens.grammar_vocabulary import GrammarVocabulary


@dataclass(frozen=True)
class TensorReport:
    """How one part is stored: its `format` here, its type in the checkpoint (`origin`), and its bytes.

    `error`: relative root-mean-square difference from the checkpoint's own values; `largest_error`: the
    largest absolute one; both 0 where the values are kept exactly.
    """

    name: str
    format: str
    origin: str
    nbytes: int
    error: float = 0.0
    largest_error: float = 0.0


@dataclass
class Model:
    """What `models.load` returns.

    `linears` and `norms` are named as `parts.parts` names them, in the decoder's order. Norms, fp32 [width], are as
    stored: `config.norm_offset` is not added. `tokenizer` is None for a checkpoint without one. `version` is a hash of
    the checkpoint's content: caches of keys and values of one version are worthless for another. `path` is the
    checkpoint's file or folder, None for a model that came from none. `file`: what the arrays are mapped from, if
    anything. `applied`: the tables of the weight techniques that made the file, where `thrifty compress` wrote it.
    """

    config: ModelConfig
    linears: dict[str, PackedLinear]
    norms: dict[str, Floats]
    tokenizer: Any = None
    version: str = ""
    report: list[TensorReport] = field(default_factory=list)
    path: Path | None = None
    file: MappedFile | None = None
    applied: tuple[Mapping[str, Any], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, norms and biases included."""
        linears = sum(linear.nbytes for linear in self.linears.values())
        return linears + sum(norm.nbytes for norm in self.norms.values())

    @property
    def bits_per_weight(self) -> float:
        """8 · bytes / weights, scales, tables, masks, padding, biases and norms included."""
        linears = sum(linear.out_features * linear.in_features for linear in self.linears.values())
        weights = linears + sum(norm.size for norm in self.norms.values())
        return 8 * self.nbytes / weights if weights else 0.0

    @property
    def read_from_file(self) -> int:
        """Bytes of the embedding where native code reads its rows from the file: it is not the output matrix too, and
        all of it lies in `file`. They are on the disk, not in memory.
        """
        if self.file is None or self.config.tied_embeddings:
            return 0
        arrays = self.linears["embedding"].state().values()
        inside = all(np.may_share_memory(array, self.file.content) for array in arrays)
        return self.linears["embedding"].nbytes if inside else 0

    @property
    def head(self) -> PackedLinear:
        """The linear that makes the logits: the embedding where the two are one."""
        return self.linears["embedding" if self.config.tied_embeddings else "head"]

    def replace(self, name: str, linear: PackedLinear) -> None:
        """Put `linear` in the place called `name`, such as "layers.0.attention.query". Nothing is copied.

        Raises CheckpointError where there is no such linear or the shape is another one.
        """
        if name not in self.linears:
            raise CheckpointError(f"{name!r} is not a linear of this decoder.")
        shape, expected = shape_of(linear), shape_of(self.linears[name])
        if shape != expected:
            raise CheckpointError(f"{name!r} has shape {list(shape)}; this decoder expects {list(expected)}.")
        self.linears[name] = linear

    def require_tokenizer(self) -> Any:
        """The tokenizer. Raises CheckpointError where there is none: what is missing, and what works without it."""
        if self.tokenizer is not None:
            return self.tokenizer
        where = "This model" if self.path is None else f"{self.path}: the checkpoint"
        raise CheckpointError(
            f"{where} has no tokenizer.json, so it takes and gives token ids only; add the file (where there is a "
            "tokenizer.model alone, transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it)."
        )

    @cached_property
    def grammar_vocabulary(self) -> GrammarVocabulary:
        """The vocabulary for grammars; made with the first of them. Raises as `GrammarVocabulary` does, CheckpointError
        where there is no tokenizer.
        """
        from thrifty.models.tokens.grammar_vocabulary import GrammarVocabulary

        return GrammarVocabulary(self.require_tokenizer(), self.config.vocabulary_size)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of a conversation through the model's chat template, with the opening of the answer.

        messages: each with "role" and "content". options: `tools`, `documents`, `enable_thinking`,
        `template_arguments={...}` for all others that the template reads, and `control_tokens_in_messages` (see
        `Tokenizer.encode_chat`). Any thread may call it, and several at once.

        Raises CheckpointError where the model has no tokenizer, TemplateError where it has no chat template or the
        template refuses, PromptError for an option of a wrong type.
        """
        from thrifty.models.chat.arguments import chat_arguments, check_messages

        check_messages(messages)
        return list(self.require_tokenizer().encode_chat(messages, **chat_arguments(options)))

    def checked(self, token_ids: Sequence[int] | Array) -> Integers:
        """`token_ids` as an int64 array [tokens]; raises PromptError with the number that would work."""
        tokens = _as_array(token_ids)
        if tokens.size == 0:
            raise PromptError("The prompt is empty; it needs at least 1 token.")
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            shape = list(tokens.shape)
            raise PromptError(
                f"Token ids are {tokens.dtype} of shape {shape}; they must be integers of shape [tokens]."
            )
        limit = self.config.context_length
        if len(tokens) > limit:
            raise PromptError(f"The prompt has {len(tokens)} tokens; this model's context holds {limit}.")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocabulary_size:
            wrong = low if low < 0 else high
            last = self.config.vocabulary_size - 1
            raise PromptError(f"Token id {wrong} is outside this model's vocabulary, 0 to {last}.")
        return tokens.astype(np.int64, copy=False)


def _as_array(token_ids: Sequence[int] | Array) -> Array:
    """`token_ids` as an array of numbers. Raises PromptError for what is none: texts, rows of unequal lengths."""
    try:
        tokens: Array = np.asarray(token_ids)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PromptError(f"Token ids must be a flat list of integers: {error}.") from error
    if tokens.dtype.kind not in "iufb":
        raise PromptError(f"Token ids must be a flat list of integers of at most 64 bits, not {tokens.dtype}.")
    return tokens


def random_model(config: ModelConfig, seed: int = 0, scale: float = 0.02, tokenizer: Any = None) -> Model:
    """A model of plain fp32 linears with normal random weights of deviation `scale`; norms start at one.

    Also the tiny model of tests. The same seed gives the same weights.
    """
    assembly, random = Assembly(config), np.random.default_rng(seed)
    for name, shape in assembly.expected.items():
        values = random.standard_normal(shape, dtype=np.float32)
        values *= np.float32(scale)
        if len(shape) == 2:
            assembly.put(name, DenseLinear.from_weight(values))
        elif name.endswith(".bias"):
            assembly.put(name, values)
        else:
            assembly.put(name, values + np.float32(1.0 - config.norm_offset))
    linears, norms = assembly.finish()
    return Model(config, linears, norms, tokenizer, version=f"random-{seed}")
