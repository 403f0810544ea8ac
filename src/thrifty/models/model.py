"""A loaded model: a decoder, its tokenizer, and what is known of how its weights are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.errors import CheckpointError, PromptError
from thrifty.formats.linear import DenseLinear, PackedLinear
from thrifty.models.assembly import Assembly
from thrifty.models.attention import causal
from thrifty.models.config import ModelConfig
from thrifty.models.decoder import Decoder

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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

    `tokenizer` is None for a checkpoint without one. `version` is a hash of the checkpoint's content:
    caches of keys and values of one version are worthless for another. `path` is the checkpoint's file or folder,
    None for a model that came from none.
    """

    config: ModelConfig
    decoder: Decoder
    tokenizer: Any = None
    version: str = ""
    report: list[TensorReport] = field(default_factory=list)
    path: Path | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, norms and biases included."""
        linears = [module for _, module in self.decoder.linears() if isinstance(module, PackedLinear)]
        inside = {id(tensor) for linear in linears for tensor in linear.parameters()}
        others = (tensor for tensor in self.decoder.parameters() if id(tensor) not in inside)
        return sum(linear.nbytes for linear in linears) + sum(x.numel() * x.element_size() for x in others)

    def require_tokenizer(self) -> Any:
        """The tokenizer. Raises CheckpointError where there is none: what is missing, and what works without it."""
        if self.tokenizer is not None:
            return self.tokenizer
        where = "This model" if self.path is None else f"{self.path}: the checkpoint"
        raise CheckpointError(
            f"{where} has no tokenizer.json, so it takes and gives token ids only; add the file (where there is a "
            "tokenizer.model alone, transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it)."
        )

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Logits [tokens, vocabulary] fp32 of a whole sequence `token_ids` [tokens], by the plain reference
        path.

        Raises PromptError for an empty sequence, one longer than the context, or an id outside the
        vocabulary.
        """
        tokens = self.checked(token_ids)
        with reference_linears(self.decoder):
            return self.decoder(tokens, torch.arange(len(tokens)), causal(self.config))

    def checked(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """`token_ids` as an int64 tensor [tokens]; raises PromptError with the number that would work."""
        try:
            tokens = torch.as_tensor(token_ids)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise PromptError(f"Token ids must be a flat list of integers: {error}.") from error
        if tokens.numel() == 0:
            raise PromptError("The prompt is empty; it needs at least 1 token.")
        if tokens.dim() != 1 or tokens.dtype not in INTEGERS:
            shape, dtype = list(tokens.shape), str(tokens.dtype).removeprefix("torch.")
            raise PromptError(f"Token ids are {dtype} of shape {shape}; they must be integers of shape [tokens].")
        limit = self.config.context_length
        if len(tokens) > limit:
            raise PromptError(f"The prompt has {len(tokens)} tokens; this model's context holds {limit}.")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocabulary_size:
            wrong = low if low < 0 else high
            last = self.config.vocabulary_size - 1
            raise PromptError(f"Token id {wrong} is outside this model's vocabulary, 0 to {last}.")
        return tokens.long()


@contextmanager
def reference_linears(decoder: Decoder) -> Iterator[None]:
    """Within it every linear of `decoder` computes in plain torch; after it, as before."""
    linears = [module for _, module in decoder.linears() if isinstance(module, PackedLinear)]
    before = [linear.native for linear in linears]
    for linear in linears:
        linear.native = False
    try:
        yield
    finally:
        for linear, native in zip(linears, before, strict=True):
            linear.native = native


def random_model(config: ModelConfig, seed: int = 0, scale: float = 0.02, tokenizer: Any = None) -> Model:
    """A model of plain fp32 linears with normal random weights of deviation `scale`; norms start at one.

    Trains; also the tiny model of tests. The same seed gives the same weights.
    """
    assembly, generator = Assembly(config), torch.Generator().manual_seed(seed)
    for name, shape in assembly.expected.items():
        values = torch.randn(shape, generator=generator) * scale
        if len(shape) == 2:
            assembly.put(name, DenseLinear.from_weight(values))
        elif name.endswith(".bias"):
            assembly.put(name, values)
        else:
            assembly.put(name, values + 1.0 - config.norm_offset)
    return Model(config, assembly.finish(), tokenizer, version=f"random-{seed}")
