"""transformers' model of a GGUF file, by its own reading of the file, without the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
import torch
from gguf import GGUFValueType
from gguf.gguf_reader import GGUFReader

LONG = 1024  # elements of an array that is passed over


class WithoutVocabulary(GGUFReader):
    """The `gguf` package's reader. It passes over long arrays: of a quarter of a million tokens, scores and types it
    makes an object each, which takes ten times as long as all weights.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if GGUFValueType(raw_type) != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        if count[0] < LONG:
            return super()._get_field_parts(orig_offs, raw_type)
        element, begin = GGUFValueType(kind[0]), orig_offs + 12
        passed = self.data[begin : self._end(begin, element, int(count[0]))]
        return 12 + len(passed), [kind, count, passed], [], [GGUFValueType.ARRAY, element]

    def _end(self, begin: int, element: GGUFValueType, count: int) -> int:
        """Where an array ends."""
        if element != GGUFValueType.STRING:
            return begin + count * np.dtype(self.gguf_scalar_to_np[element]).itemsize
        view, at = memoryview(self.data), begin
        for _ in range(count):
            at += 8 + int.from_bytes(view[at : at + 8], "little")
        return at


def oracle(path: Path) -> Any:
    """transformers' model with its own reading of the file: config, names, layouts and the `gguf` package's values.

    `from_pretrained(gguf_file=...)` does the same and asks for the package `accelerate`, which nothing else needs.
    """
    import transformers
    from transformers.initialization import no_init_weights
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with mock.patch.object(gguf, "GGUFReader", WithoutVocabulary), no_init_weights():
        config = transformers.AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
        (embedding,) = (tensor for tensor in WithoutVocabulary(path).tensors if tensor.name == "token_embd.weight")
        config.vocab_size = int(embedding.shape[1])
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(loaded, strict=False, assign=True)
    assert set(missing) <= {"lm_head.weight"} and not unexpected  # the head is the embedding
    model.tie_weights()
    return model.eval()
