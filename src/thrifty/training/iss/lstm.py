"""An LSTM language model as plain arrays: it runs, and is kept on the disk, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thrifty.arrays import Array, Floats, Integers
from thrifty.errors import CheckpointError, StorageError
from thrifty.files import replace_file

GATES = 4  # input, forget, candidate, output: the order of rows


@dataclass(frozen=True)
class Layer:
    """The rows of a gate are consecutive. incoming: fp32 [4 · hidden, in]. recurrent: fp32 [4 · hidden, hidden]. bias:
    fp32 [4 · hidden].
    """

    incoming: Floats
    recurrent: Floats
    bias: Floats

    @property
    def hidden(self) -> int:
        """Units of the hidden state."""
        return int(self.recurrent.shape[1])


State = list[tuple[Floats, Floats]]
"""(h, c) of each layer, fp32 [hidden]."""


@dataclass(frozen=True)
class LSTM:
    """characters: what token ids stand for. embedding: fp32 [characters, width]. layers: the first reads the embedding,
    each other the hidden state of the one before. head: fp32 [characters, hidden of the last]. head_bias: fp32
    [characters]. Raises CheckpointError where shapes do not follow from each other.
    """

    characters: str
    embedding: Floats
    layers: Sequence[Layer]
    head: Floats
    head_bias: Floats

    def __post_init__(self) -> None:
        count, read = self.embedding.shape
        for place, layer in enumerate(self.layers):
            rows = GATES * layer.hidden
            _insist(f"incoming weight of layer {place}", layer.incoming, (rows, read))
            _insist(f"recurrent weight of layer {place}", layer.recurrent, (rows, layer.hidden))
            _insist(f"bias of layer {place}", layer.bias, (rows,))
            read = layer.hidden
        _insist("head", self.head, (count, read))
        _insist("bias of the head", self.head_bias, (count,))
        if len(self.characters) != count:
            raise CheckpointError(f"the model knows {len(self.characters)} characters and embeds {count}")

    @property
    def hidden(self) -> tuple[int, ...]:
        """Hidden units of each layer."""
        return tuple(layer.hidden for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Products of one token: of the layers and the head; the embedding is looked up."""
        layers = sum(layer.incoming.size + layer.recurrent.size for layer in self.layers)
        return int(layers + self.head.size)

    @property
    def parameters(self) -> int:
        """Numbers of all weights and biases."""
        biases = sum(layer.bias.size for layer in self.layers) + self.head_bias.size
        return int(self.multiply_adds + self.embedding.size + biases)

    def start(self) -> State:
        """The state before the first token: zeros."""
        return [(np.zeros(size, np.float32), np.zeros(size, np.float32)) for size in self.hidden]

    def step(self, token: int, state: State) -> Floats:
        """Logits of the next character, fp32 [characters]. The state becomes that after the token."""
        x = self.embedding[token]
        for place, layer in enumerate(self.layers):
            h, c = state[place]
            gates = layer.incoming @ x + layer.recurrent @ h + layer.bias
            into, forget, candidate, out = gates.reshape(GATES, layer.hidden)
            c = _sigmoid(forget) * c + _sigmoid(into) * np.tanh(candidate)
            x = _sigmoid(out) * np.tanh(c)
            state[place] = (x, c)
        logits: Floats = self.head @ x + self.head_bias
        return logits

    def logits(self, tokens: Integers) -> Floats:
        """Of the next character behind each token: fp32 [tokens, characters]. tokens: int64 [tokens]."""
        state = self.start()
        return np.stack([self.step(int(token), state) for token in tokens])

    def losses(self, tokens: Integers) -> Floats:
        """Nats of each token but the first, given those before it: fp32 [tokens − 1]."""
        logits = self.logits(tokens[:-1])
        logits -= logits.max(axis=1, keepdims=True)
        total = np.log(np.exp(logits).sum(axis=1))
        losses: Floats = total - logits[np.arange(len(logits)), tokens[1:]]
        return losses

    def save(self, path: Path) -> None:
        """Write one safetensors file. Raises StorageError."""
        from safetensors.numpy import save

        arrays = {"embedding": self.embedding, "head": self.head, "head_bias": self.head_bias}
        for place, layer in enumerate(self.layers):
            arrays |= {f"{place}.{name}": array for name, array in vars(layer).items()}
        kept = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, save(kept, {"characters": self.characters}))
        except OSError as error:
            raise StorageError(f"cannot write the model to '{path}': {error}") from error

    @classmethod
    def load(cls, path: Path) -> LSTM:
        """What `save` wrote. Raises StorageError for a file that cannot be read, CheckpointError for another's."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="np") as file:
                arrays: dict[str, Array] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                characters = (file.metadata() or {}).get("characters", "")
        except (OSError, SafetensorError) as error:
            raise StorageError(f"cannot read the model '{path}': {error}") from error
        count = sum(name.endswith(".recurrent") for name in arrays)
        try:
            layers = [
                Layer(*(arrays[f"{place}.{name}"] for name in ("incoming", "recurrent", "bias")))
                for place in range(count)
            ]
            return cls(characters, arrays["embedding"], layers, arrays["head"], arrays["head_bias"])
        except KeyError as error:
            raise CheckpointError(f"'{path}' is no LSTM of this recipe: it lacks {error}") from error


def _insist(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise CheckpointError(f"the {name} has shape {list(array.shape)}, its neighbours want {list(shape)}")


def _sigmoid(x: Floats) -> Floats:
    value: Floats = 0.5 * (np.tanh(0.5 * x) + 1)  # no overflow at either end
    return value
