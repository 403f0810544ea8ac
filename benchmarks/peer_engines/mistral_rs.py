"""mistral.rs under comparison, by its Python module, from the GGUF file.

It takes text: a prompt of ids goes in as what they decode to, and the rates are those of the tokens that it counts. Its
cache of prefixes is off. It answers one prompt at a time here, and gives no logits.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.peer_engines.protocol import PeerEngine, Specification, Timing


class MistralRs(PeerEngine):
    """A Runner on the CPU."""

    def __init__(self, specification: Specification) -> None:
        os.environ["RAYON_NUM_THREADS"] = str(specification.threads)  # read when its pool starts
        import mistralrs

        self._library: Any = mistralrs
        path = Path(specification.path)
        which = mistralrs.Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
        self._runner = mistralrs.Runner(which=which, prefix_cache_n=0)
        self.vocabulary = _vocabulary(path)

    def first_token(self, prompt: list[int]) -> int:
        self._complete(prompt, 1)
        return -1  # it tells the text alone

    def measure(self, prompts: list[list[int]], steps: int, reuse: bool) -> Timing:
        if len(prompts) != 1:
            raise ValueError("mistral.rs is measured with one prompt at a time")
        usage = self._complete(prompts[0], steps + 1)
        if usage.completion_tokens < 2:
            raise ValueError(f"mistral.rs ended after {usage.completion_tokens} tokens")
        # The prompt's time gives the first token as well.
        return Timing(
            usage.prompt_tokens,
            usage.completion_tokens - 1,
            usage.total_completion_time_sec,
            usage.total_prompt_time_sec,
        )

    def _complete(self, prompt: list[int], count: int) -> Any:
        text = self._runner.detokenize_text(prompt, False)
        request = self._library.CompletionRequest(model="default", prompt=text, max_tokens=count, temperature=0.0)
        return self._runner.send_completion_request(request).usage


def _vocabulary(path: Path) -> int:
    """Tokens of a GGUF file's vocabulary: the module does not tell."""
    from gguf import GGUFReader

    return len(GGUFReader(path).fields["tokenizer.ggml.tokens"].data)
