"""Texts of tokens that end an answer, and the shape of those that mark turns, whatever a file says of them."""

from __future__ import annotations

import re
from collections.abc import Collection

# The shape of what opens or closes a part of a turn.
MARKER = re.compile(r"<\|[^|<>\s]+\|>|<(?:start|end)_of_\w+>|<｜[^｜<>\s]+｜>")
# What does so where a chat template writes it.
BRACKETS = re.compile(r"\[/?[A-Z][A-Z_]+\]")
# Ends of a turn in chat formats of several families.
ENDS_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
)
# Ends that only GGUF files are searched for, as llama.cpp does: such a file may name a single end, or a wrong one.
_MORE_ENDS = (
    "</s>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<turn|>",
    "<|tool_response>",
)
# What a model of code writes where one file ends and another begins.
_ENDS_OF_FILE = (
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<|file_sep|>",
)
# The other control tokens of filling in the middle: never shown, and no end.
MARKS_OF_FILLING = (
    *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>"),
    *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>"),
    *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"),
    *("<|prefix|>", "<|suffix|>", "<|middle|>"),
    "<reponame>",  # SmolLM2 has it, and does not end with it
)
# Where a vocabulary has all of these, "<|end|>" ends a message inside an answer, not the answer.
_WITHOUT_END = (
    {"<|return|>", "<|call|>"},
    {"<|return|>", "<|calls|>"},
    {"<|call|>", "<|flush|>"},
    {"<|calls|>", "<|flush|>"},
)
# Vocabularies with this token hold "</s>" as a tag of HTML.
_GEMMA = "<start_of_turn>"


def known_ends(texts: Collection[str]) -> tuple[str, ...]:
    """The texts of a GGUF file's vocabulary that end an answer, ends of a turn first."""
    present = set(texts)
    left_out = set()
    if any(pair <= present for pair in _WITHOUT_END):
        left_out.add("<|end|>")
    if _GEMMA in present or "<|tool_response>" in present:
        left_out.add("</s>")
    return tuple(text for text in (*ENDS_OF_TURN, *_MORE_ENDS, *_ENDS_OF_FILE) if text in present - left_out)
