"""The embedded models: content, tokenizer and logits against transformers, and what a start costs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thrifty.models.embedded import MODELS
from thrifty.models.gguf.source import GGUFSource
from thrifty.models.loading import assemble, load
from thrifty.models.store.content_key import file_digest
from thrifty.models.tokens.tokenizer import Tokenizer
from thrifty.reference.loading import build
from thrifty.reference.loading import load as load_reference

pytestmark = pytest.mark.model

FLOAT32 = np.dtype(np.float32)
TEXT = (
    "The printing press changed how knowledge travelled. Within fifty years of its invention, more books had been made "
    "than in the thousand years before, and a merchant in one city could read what a scholar in another had written "
    "only months earlier."
)
SAMPLES = [
    "Hello world",
    "  two  spaces   three    four ",
    "\n\n\n tabs\t\tx\r\n",
    "def f(x):\n    return x**2  # ok\n\n\nclass A:\n\tpass",
    "emoji 😀👩‍👩‍👧‍👦 flags 🇩🇪 \u200b\ufeff\u00a0",
    "日本語のテキスト 中文字符 한국어 Ελληνικά русский العربية हिन्दी",
    "it's don't I'LL we've cafe\u0301 café zażółć 𝕳𝖊𝖑𝖑𝖔",
    "<|im_start|>user\nhi<|im_end|>\n<bos><eos><start_of_turn>user <unk> [INST]",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?",
    "a" * 300,
    "",
    " ",
    TEXT,
]
PIECES = ["a", "the", " ", "  ", "\n", "\t", "é", "中", "😀", "<", "'s", "Q", "ing", ".", "\u2581"]


def samples() -> list[str]:
    chance = random.Random(0)
    return [*SAMPLES, *("".join(chance.choices(PIECES, k=chance.randint(1, 30))) for _ in range(300))]


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_the_file_is_the_known_one(path: Path) -> None:
    (model,) = (model for model in MODELS.values() if model.file == path.name)
    assert file_digest(path) == model.sha256 and path.stat().st_size == model.nbytes


def test_the_tokenizer_is_that_of_transformers(path: Path) -> None:
    """Words with digits are left out for SmolLM2: transformers' conversion drops the model's own cut of digits."""
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    definition = GGUFSource(path).tokenizer
    found = Tokenizer(definition.definition, definition.settings)
    texts = samples()
    if "gemma" in path.name:
        texts += ["12345 678 3.14", " 1  2\n3"]
    for text in texts:
        ids = oracle.encode(text, add_special_tokens=False).ids
        assert found.encode(text, add_bos=False) == ids, text
        assert found.decode(ids, skip_special=False) == oracle.decode(ids, skip_special_tokens=False), text


def test_smollm2_cuts_digits_and_ends_at_each_known_token(smollm2: Path) -> None:
    found = load(smollm2).tokenizer
    pieces = [found.backend.id_to_token(token) for token in found.encode("in 1984")]
    assert pieces == ["in", "Ġ", "1", "9", "8", "4"]
    texts = {found.backend.id_to_token(token) for token in found.eos_ids}
    assert texts == {"<|im_end|>", "<|endoftext|>"}
    prompt = found.decode(found.encode_chat([{"role": "user", "content": "Hi 😀"}]), skip_special=False)
    assert prompt.startswith("<|im_start|>system\n") and prompt.endswith("Hi 😀<|im_end|>\n<|im_start|>assistant\n")


def test_gemma_begins_with_one_bos_and_has_no_template(gemma3: Path) -> None:
    found = load(gemma3).tokenizer
    assert found.encode("Hi")[0] == found.bos_id == 2
    assert found.encode("<bos>Hi").count(2) == 1
    assert not found.has_chat_template


# The published configs of the two models, in transformers' words.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": (
        "LlamaForCausalLM",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma-3-270m-q4_k_m.gguf": (
        "Gemma3ForCausalLM",
        {
            "vocab_size": 262144,
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "max_position_embeddings": 32768,
            "sliding_window": 512,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
    ),
}
PARTS = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
NORMS = {"mlp_norm": "post_attention_layernorm"}
GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


def oracle_of(path: Path) -> Any:
    """The model in transformers, fp32, with the exact values of the file (which unit tests check against gguf)."""
    import transformers
    from transformers.initialization import no_init_weights

    name, options = CONFIGS[path.name]
    gemma = "Gemma" in name
    model_class = getattr(transformers, name)
    with no_init_weights():  # all are given below
        oracle = model_class(model_class.config_class(**options))
    parts = {**PARTS, **(GEMMA_NORMS if gemma else NORMS)}
    state = {}
    for weight in GGUFSource(path).weights(FLOAT32):
        values = torch.from_numpy(weight.value if isinstance(weight.value, np.ndarray) else weight.value.dequantize())
        if "norm" in weight.name and gemma:
            values = values - 1  # transformers stores Gemma's norms minus one
        top = {"embedding": "embed_tokens", "final_norm": "norm"}.get(weight.name)
        if top is None:
            _, index, inner = weight.name.split(".", 2)
            top = f"layers.{index}.{parts[inner]}"
        state[f"model.{top}.weight"] = values
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    oracle.load_state_dict(state, assign=True)
    return oracle.eval()


def test_logits_are_those_of_transformers(path: Path, record_property: Any) -> None:
    """fp32 on both sides, from the same quantised values: top-1 equal at every position."""
    oracle, exact = oracle_of(path), load_reference(path, dtype=torch.float32)
    ids = torch.tensor(exact.tokenizer.encode(TEXT))
    with torch.no_grad():
        expected = oracle(ids[None]).logits[0]
    found = exact.logits(ids)
    difference = float((found - expected).abs().max())
    record_property("largest_logit_difference", difference)
    print(f"{path.name}: largest logit difference {difference:.2e}")
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    assert difference < 1e-3
    packed = build(load(path)).logits(ids)
    divergence = (expected.log_softmax(-1).exp() * (expected.log_softmax(-1) - packed.log_softmax(-1))).sum(-1).mean()
    assert divergence < 2e-3


def test_every_type_is_kept_and_takes_the_files_bytes(smollm2: Path, gemma3: Path) -> None:
    formats: dict[str, str] = {}
    for path in (smollm2, gemma3):
        found = load(path)
        assert max(entry.error for entry in found.report) == 0
        formats |= {entry.origin: entry.format for entry in found.report}
        assert 0 <= path.stat().st_size - found.nbytes < 0.02 * path.stat().st_size + 8_000_000  # the vocabulary
    assert formats == {
        "Q4_1": "int4-g32",
        "Q5_0": "int5-g32",
        "Q8_0": "int8-g32",
        "Q4_K": "q4_k",
        "Q6_K": "q6_k",
        "F32": "f32",
    }


def test_a_packed_model_gives_the_exact_values_of_its_file(path: Path) -> None:
    source = GGUFSource(path)
    exact = assemble(source, FLOAT32)
    found = load(path)
    assert list(found.linears) == list(exact.linears)
    for name, linear in found.linears.items():
        if ".0." in name or ".29." in name or name == "embedding":
            assert np.array_equal(linear.dequantize(), exact.linears[name].dequantize()), name


MEASURE = """
import sys, resource
import tokenizers, numpy
from thrifty.models import loading
from thrifty.models.gguf import source as gguf_source
from thrifty.models.store import converted
def field(name):
    return next(int(line.split()[1]) / 1000 for line in open("/proc/self/status") if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")
before = field("VmRSS")
own = field("RssAnon")
model = loading.load(sys.argv[1])
print(before, field("VmRSS"), field("VmHWM"), model.nbytes / 1e6, field("RssAnon") - own)
"""


def measure(path: Path, program: str = MEASURE) -> tuple[float, float, float, float]:
    """Growth after it, growth at the peak, the model's size, and what it holds of its own (mapped weights left out), in
    MB, of a process of its own.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    before, after, peak, size, own = map(float, result.stdout.split())
    return after - before, peak - before, size, own


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_conversion_peaks_near_the_packed_size_and_the_second_start_reads_little(smollm2: Path, cache: Path) -> None:
    _, peak, size, _ = measure(smollm2)
    largest_part = 31  # MB: the embedding
    assert peak < size + 2 * largest_part
    after, peak, _, own = measure(smollm2)
    assert own < 15, "weights stay where they are mapped"
    assert after <= peak < size + 15, "large pages bring some of them with the norms"


MEASURE_TOKENIZER = """
import sys
import tokenizers
from thrifty.models import loading
def field(name):
    return next(int(line.split()[1]) / 1000 for line in open("/proc/self/status") if line.startswith(name))
model = loading.load(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")
before = field("VmRSS")
model.tokenizer.backend
print(before, field("VmRSS"), field("VmHWM"), 0, 0)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_tokenizer_peaks_and_stays_small(smollm2: Path) -> None:
    load(smollm2)
    kept, peak, _, _ = measure(smollm2, MEASURE_TOKENIZER)
    assert kept < 22 and peak < 45
