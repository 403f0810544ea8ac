"""Options of sampling from every library, and of every wrong type."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.errors import PromptError


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", torch.tensor(0.5), 0.5),
        ("temperature", 1, 1),
        ("top_k", np.int64(3), 3),
        ("top_k", torch.tensor(3), 3),
        ("top_p", np.float64(0.5), 0.5),
        ("max_tokens", np.uint8(7), 7),
        ("max_tokens", None, None),
        ("seed", np.int64(1), 1),
        ("ignore_eos", np.bool_(True), True),
        ("logprobs", np.int32(2), 2),
        ("stop", None, ()),
        ("stop", "END", ("END",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", np.array(["a", "b"]), ("a", "b")),
        ("stop", (text for text in "ab"), ("a", "b")),
        ("stop_token_ids", None, ()),
        ("stop_token_ids", 5, (5,)),
        ("stop_token_ids", np.array([1, 2]), (1, 2)),
        ("stop_token_ids", {3}, (3,)),
        ("logit_bias", None, {}),
        ("logit_bias", {np.int64(3): np.float32(1.5)}, {3: 1.5}),
        ("logit_bias", {torch.tensor(3): torch.tensor(1.5)}, {3: 1.5}),
        ("logit_bias", {3: np.array(2.0)}, {3: 2.0}),
        ("logit_bias", {3: float("-inf")}, {3: float("-inf")}),
    ],
)
def test_values_of_every_library_are_plain_ones(name: str, value: Any, expected: Any) -> None:
    found = getattr(SamplingParameters(**{name: value}), name)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", "1", "temperature = '1' (str) is not a number; use 0 (greedy) or more"),
        ("temperature", True, "temperature = True (bool) is not a number"),
        ("temperature", np.bool_(True), "is not a number"),
        ("temperature", None, "temperature = None is not a number"),
        ("temperature", float("nan"), "temperature = nan is out of range"),
        ("temperature", np.array([1.0]), "is not a number"),
        ("top_k", 1.5, "top_k = 1.5 (float) is not a whole number; use 0 (off) or more"),
        ("top_k", np.float32(3), "is not a whole number"),
        ("top_p", np.float32(2), "top_p = 2.0 is out of range"),
        ("max_tokens", True, "max_tokens = True (bool) is not a whole number"),
        ("max_tokens", 0, "max_tokens = 0 is out of range; use 1 or more, or None for as many as fit"),
        ("max_tokens", "fit", "max_tokens = 'fit' (str) is not a whole number"),
        ("seed", torch.tensor(True), "is not a whole number"),
        ("stop", b"END", "stop = b'END' (bytes) is no text; use a string, a list of strings, or None"),
        ("stop", 5, "stop = 5 (int) is no text"),
        ("stop", {"a": 1}, "stop = {'a': 1} (dict) is no text"),
        ("stop", ["a", 5], "stop contains 5 (int), which is no text; use strings"),
        ("stop", [b"a"], "stop contains b'a' (bytes), which is no text"),
        ("stop", "", "stop contains ''"),
        ("stop_token_ids", "12", "stop_token_ids = '12' (str) holds no token ids"),
        ("stop_token_ids", [1.5], "stop_token_ids[0] = 1.5 (float) is no token id"),
        ("stop_token_ids", [-1], "stop_token_ids = -1 is out of range"),
        ("logit_bias", [(3, 1.0)], "logit_bias = [(3, 1.0)] (list) is no mapping; use {token id: bias}, or None"),
        ("logit_bias", {"3": 1.0}, "logit_bias has the key '3' (str), which is no token id; use whole"),
        ("logit_bias", {1.5: 1.0}, "logit_bias has the key 1.5 (float), which is no token id; use whole numbers"),
        ("logit_bias", {3: np.array([1.0])}, "logit_bias[3] = array([1.]); use a finite number"),
        ("logit_bias", {3: np.bool_(True)}, "logit_bias[3] = True; use a finite number"),
        ("logit_bias", {3: "x"}, "logit_bias[3] = 'x'; use a finite number"),
        ("ignore_eos", "yes", "ignore_eos = 'yes' (str) is out of range; use True or False"),
        ("greedy", "yes", "greedy = 'yes' (str) is out of range"),
    ],
)
def test_wrong_types_are_named_with_value_and_remedy(name: str, value: Any, message: str) -> None:
    with pytest.raises(PromptError, match=re.escape(message)):
        SamplingParameters.of(**{name: value})
