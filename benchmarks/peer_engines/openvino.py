"""OpenVINO GenAI under comparison, from the GGUF file. Options: `kv`, its name of the cache's precision, or none.

It caches prefixes, so no prompt may come twice.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
import openvino_genai as genai
from benchmarks.peer_engines.protocol import PeerEngine, Specification, Timing

if TYPE_CHECKING:
    from openvino import CompiledModel


class OpenVino(PeerEngine):
    """LLMPipeline on the CPU; ids go in as they are, no tokenizer is between."""

    def __init__(self, specification: Specification) -> None:
        self._path = specification.path
        self._properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": specification.threads}
        if kv := specification.options.get("kv"):
            self._properties["KV_CACHE_PRECISION"] = kv
        self._pipe = genai.LLMPipeline(self._path, "CPU", **self._properties)

    @cached_property
    def vocabulary(self) -> int:  # type: ignore[override]
        """Read when it is first asked for: a start to the first token does without."""
        return len(self._pipe.get_tokenizer().get_vocab())

    def first_token(self, prompt: list[int]) -> int:
        return int(self._generate([prompt], 1).tokens[0][0])

    def measure(self, prompts: list[list[int]], steps: int, reuse: bool) -> Timing:
        metrics = self._generate(prompts, steps + 1).perf_metrics
        first, whole = metrics.get_ttft().mean / 1e3, metrics.get_generate_duration().mean / 1e3
        return Timing(sum(map(len, prompts)), steps * len(prompts), whole - first, first)

    def logits(self, tokens: list[int], scored: int) -> np.ndarray:
        """By the network that GenAI made of the file, written out and compiled with the same properties: its own
        pipeline gives tokens only.
        """
        with tempfile.TemporaryDirectory() as folder:
            request = self._compiled(Path(folder)).create_infer_request()
        ids = np.array([tokens], dtype=np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(len(tokens), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        names = {name for port in request.model_inputs for name in port.get_names()}
        found = request.infer({name: value for name, value in inputs.items() if name in names})
        values = np.asarray(found[request.model_outputs[0]], dtype=np.float32)[0]
        if len(values) < scored:
            raise ValueError(f"the network gives logits of {len(values)} of {len(tokens)} tokens")
        return values[-scored:]

    def _compiled(self, folder: Path) -> CompiledModel:
        copy = folder / "model.gguf"
        shutil.copyfile(self._path, copy)
        genai.LLMPipeline(str(copy), "CPU", enable_save_ov_model=True, **self._properties)
        core = openvino.Core()
        return core.compile_model(core.read_model(folder / "openvino_model.xml"), "CPU", self._properties)

    def _generate(self, prompts: list[list[int]], count: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.do_sample, config.ignore_eos = False, True
        ids = np.array(prompts, dtype=np.int64)
        inputs = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        return self._pipe.generate(inputs, config)
