"""Calibration text, and what linear layers see of it in the model as techniques have left it so far."""

from __future__ import annotations

import hashlib
import importlib
import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thrifty import extras
from thrifty.arrays import Floats, Integers
from thrifty.errors import RecipeError
from thrifty.models.model import Model
from thrifty.weights.structure import LinearInfo

SEQUENCES, TOKENS = 16, 256


@dataclass(frozen=True)
class Activations:
    """What a linear layer saw on calibration text.

    inputs: fp32 [tokens, in_features]; of an expert the tokens that were sent to it, which can be none. sensitivity:
    fp32 [out_features, in_features], the squared gradients of the loss, for a `SensitiveTechnique`; else None.
    """

    inputs: Floats
    sensitivity: Floats | None = None


Calibration = Callable[[LinearInfo], Activations]


@dataclass(frozen=True)
class CalibrationSet:
    """Token ids to calibrate with. name: of the text. sequences: int64 [sequences, tokens]."""

    name: str
    sequences: Integers

    @property
    def label(self) -> str:
        """What a model's version says of it: the name, the size and a digest of the ids."""
        count, tokens = self.sequences.shape
        digest = hashlib.sha256(np.ascontiguousarray(self.sequences, np.int64).tobytes()).hexdigest()
        return f"{self.name}:{count}x{tokens}:{digest[:12]}"


def default_calibration(model: Model, sequences: int = SEQUENCES, tokens: int = TOKENS) -> CalibrationSet:
    """The beginning of `texts/calibration.txt` in the model's tokens, cut to at most `sequences` of `tokens` each.

    Raises RecipeError for a model without a tokenizer, or one that makes fewer than 2 tokens of the text.
    """
    return text_calibration(model, _text(), "thrifty-docs", sequences, tokens)


def python_calibration(model: Model, sequences: int, tokens: int) -> CalibrationSet:
    """English that every Python brings along: the topics of its language reference, as `help()` shows them, about
    150,000 tokens. For trainings, which need more than the default text has. No evaluation scores it. Raises as above.
    """
    texts: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    text = "\n\n".join(texts[name] for name in sorted(texts))
    return text_calibration(model, text, "python-topics", sequences, tokens)


def text_calibration(
    model: Model, text: str, name: str, sequences: int = SEQUENCES, tokens: int = TOKENS
) -> CalibrationSet:
    """The beginning of a text as `default_calibration` cuts its own. name: for the label. Raises as it does."""
    if model.tokenizer is None:
        raise RecipeError(
            "calibration text needs a tokenizer and this model has none: pass a CalibrationSet of its ids"
        )
    tokens = min(tokens, model.config.context_length)
    ids = list(model.tokenizer.encode(text))[: sequences * tokens]
    tokens = min(tokens, len(ids))
    if tokens < 2:
        raise RecipeError(f"the tokenizer makes {len(ids)} tokens of the calibration text; it must make at least 2")
    count = len(ids) // tokens
    return CalibrationSet(name, np.array(ids[: count * tokens], np.int64).reshape(count, tokens))


def _text() -> str:
    return (importlib.resources.files("thrifty.weights") / "texts" / "calibration.txt").read_text(encoding="utf-8")


def seen(model: Model, calibration: CalibrationSet, what: str) -> Calibration:
    """What each linear of `model` sees of a set. Ask in the decoder's order, and replace linears meanwhile: what comes
    later sees what was replaced before. what: needs it, as the error where torch is not installed begins.
    """
    extras.require_torch(what)
    from thrifty.reference.layer_inputs import LayerInputs

    inputs = LayerInputs(model, calibration.sequences)
    return lambda linear: Activations(inputs(linear.name))


def random_calibration(model: Model, sequences: int = SEQUENCES, tokens: int = TOKENS) -> CalibrationSet:
    """Token ids drawn evenly from the vocabulary, always the same ones: for what needs no text of any kind."""
    tokens = min(tokens, model.config.context_length)
    drawn = np.random.default_rng(0).integers(0, model.config.vocabulary_size, (sequences, tokens), np.int64)
    return CalibrationSet("random-tokens", drawn)
