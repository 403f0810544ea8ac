"""The trained model as a directory with the files of a Hugging Face checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from thrifty.reference.decoder import Decoder
from training.recall.network import Shape
from training.recall.vocabulary import BEGIN, END, UNKNOWN


def export(decoder: Decoder, shape: Shape, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, tokenizer.json, tokenizer_config.json and model.safetensors in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": BEGIN, "eos_token": END, "unk_token": UNKNOWN, "add_bos_token": True}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(shape.published(), indent=1) + "\n")
    tensors = {shape.tensor_name(name): value.detach().to(torch.bfloat16) for name, value in decoder.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
