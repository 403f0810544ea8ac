"""A tiny random decoder and a byte tokenizer: the real engine, cache and kernels in milliseconds."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from thrifty.formats.linear import GroupLinear
from thrifty.models.config.layer_spec import Decay, LayerSpec, RecurrentSpec, RopeConfig, recurrent_layer
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.model import Model, random_model

BOS, EOS, END_OF_TURN = 256, 257, 258
VOCABULARY = 272


class ByteStream:
    """Incremental decoding of bytes: whole UTF-8 characters only."""

    def __init__(self) -> None:
        self._held = b""

    def push(self, token: int) -> str:
        if token >= BOS:
            return ""
        self._held += bytes([token])
        try:
            text = self._held.decode()
        except UnicodeDecodeError as error:
            incomplete = error.reason == "unexpected end of data" and len(self._held) - error.start < 4
            stop = error.start if incomplete else len(self._held)
            text, self._held = self._held[:stop].decode(errors="replace"), self._held[stop:]
            return text
        self._held = b""
        return text

    def hidden(self, token: int) -> str:
        return f"<{token}>" if token >= BOS else ""

    def flush(self) -> str:
        text, self._held = self._held.decode(errors="replace"), b""
        return text


class ByteTokenizer:
    """A token is a byte; three special ids follow."""

    eos_ids = (EOS, END_OF_TURN)
    bos_id = BOS
    has_chat_template = True
    special_ids = frozenset((BOS, EOS, END_OF_TURN))
    punctuation_ids = frozenset(string.punctuation.encode())

    def encode(self, text: str, add_bos: bool | None = None, control: bool = True) -> list[int]:
        return [BOS, *text.encode()] if add_bos else list(text.encode())

    def absent_ids(self, size: int) -> frozenset[int]:
        return frozenset()  # the rows above are chosen, too: answers vary more

    def token_bytes(self, size: int) -> list[bytes]:
        names = {token: f"<{token}>".encode() for token in self.special_ids}
        return [bytes([token]) if token < BOS else names.get(token, b"") for token in range(size)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return bytes(token for token in ids if token < BOS).decode(errors="replace")

    def stream(self, skip_special: bool = True, after: Sequence[int] = ()) -> ByteStream:
        return ByteStream()

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **_: Any
    ) -> str:
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return "".join(lines) + ("assistant: " if add_generation_prompt else "")

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        return [BOS, *self.apply_chat_template(messages, **options).encode()]


def tiny_config(layers: int = 3, windows: Sequence[int | None] = (), **changes: Any) -> ModelConfig:
    """head_dim 64, so that native kernels take it. windows: one a layer, all global by default."""
    rope = RopeConfig(theta=10000.0, dimension=64)
    config = ModelConfig(
        family="tiny",
        vocabulary_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        heads=4,
        kv_heads=2,
        head_dim=64,
        context_length=4096,
        layers=tuple(LayerSpec(window, rope) for window in windows or (None,) * layers),
        norm_epsilon=1e-5,
        query_scale=64**-0.5,
        tied_embeddings=True,
        bos_ids=(BOS,),
        eos_ids=(EOS, END_OF_TURN),
    )
    return dataclasses.replace(config, **changes)


def hybrid_config(pattern: str = "rrar", decay: Decay = "head", **changes: Any) -> ModelConfig:
    """A letter a layer: recurrent, global attention, windowed attention."""
    recurrent = recurrent_layer(RecurrentSpec(3, 24, 40, decay, temperature=2.0))
    rope = RopeConfig(theta=10000.0, dimension=64)
    kinds = {"r": recurrent, "a": LayerSpec(None, rope), "w": LayerSpec(100, rope)}
    layers = tuple(kinds[letter] for letter in pattern)
    return dataclasses.replace(tiny_config(len(pattern)), layers=layers, **changes)


def uneven_config(**changes: Any) -> ModelConfig:
    """Layers that differ in heads, KV heads, head_dim, MLP width and window."""
    wide, narrow = RopeConfig(theta=10000.0, dimension=64), RopeConfig(theta=500.0, dimension=32)
    layers = (
        LayerSpec(None, wide),
        LayerSpec(None, narrow, heads=6, kv_heads=3, head_dim=32, intermediate_size=96),
        LayerSpec(100, wide, heads=2, kv_heads=1, intermediate_size=192),
        LayerSpec(None, wide, kv_heads=4),
    )
    return dataclasses.replace(tiny_config(4), layers=layers, **changes)


def tiny_model(packed: bool = False, seed: int = 0, config: ModelConfig | None = None, **changes: Any) -> Model:
    """Random weights wide enough that answers vary. packed: int4 layers and an int8 embedding, else plain fp32."""
    model = random_model(config or tiny_config(**changes), seed, scale=0.25, tokenizer=ByteTokenizer())
    if packed:
        for name, linear in model.linears.items():
            bits = 8 if name == "embedding" else 4
            model.replace(name, GroupLinear.quantize(linear.dequantize(), bits, 32, symmetric=False))
    return model


def text_tokens(count: int, seed: int = 0) -> list[int]:
    """`count` printable bytes that repeat nowhere soon."""
    return [32 + (seed * 7919 + place * place * 31 + place * 17) % 95 for place in range(count)]
