"""`compressed_cache`: a transformers model attends through Thrifty's cache, keeps the engine's slots, is restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint import write_checkpoint
from tests.tiny import tiny_model

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import ConfigError, PromptError, RecipeError
from thrifty.models.model import Model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from thrifty.bridge import compressed_cache  # noqa: E402
from thrifty.bridge.past import Past  # noqa: E402

PROMPT = [32 + (place * place * 31 + place * 17) % 95 for place in range(300)]
DISTINCT = [1 + place * 37 % 255 for place in range(250)]
"""No token twice: in the first layer the keys of equal tokens have equal norms, which rounding alone would order."""

POLICIES: list[dict[str, Any]] = [
    {"technique": "snapkv", "keep": 0.3},
    {"technique": "pyramidkv", "keep": 0.3},
    {"technique": "ada-kv", "keep": 0.3},
    {"technique": "h2o", "capacity": 80},
    {"technique": "knorm", "keep": 0.4},
    {"technique": "kivi", "bits": 2},
]


NAMES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}


def twin_of(ours: Model) -> Any:
    """A Llama of transformers with the weights of a tiny model in fp32."""
    config = ours.config
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocabulary_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=len(config.layers),
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_epsilon,
            rope_theta=10000.0,
            tie_word_embeddings=True,
            eos_token_id=None,
        )
    )
    tensors = {name: linear.dequantize() for name, linear in ours.linears.items()} | dict(ours.norms)
    state = {"model.embed_tokens.weight": tensors.pop("embedding")}
    for name, tensor in tensors.items():
        if name.startswith("layers."):
            layer, _, part = name.removeprefix("layers.").partition(".")
            state[f"model.layers.{layer}.{NAMES[part]}.weight"] = tensor
        else:
            state["model.norm.weight"] = tensor
    missing, unexpected = theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected
    theirs.tie_weights()
    return theirs.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def recipe(*tables: dict[str, Any], stage: str = "cache") -> dict[str, Any]:
    return {stage: list(tables)}


def ids(*rows: list[int]) -> Any:
    return torch.tensor(rows)


def generated(model: Any, tokens: Any, count: int = 12, **options: Any) -> list[list[int]]:
    options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count} | options
    with torch.no_grad():
        return [row[tokens.shape[1] :] for row in model.generate(tokens, pad_token_id=0, **options).tolist()]


def implementation(model: Any) -> Any:
    return model.config._attn_implementation


def test_the_full_cache_answers_as_transformers_does(model: Any) -> None:
    plain = generated(model, ids(PROMPT))
    with compressed_cache(model, {}) as cache:
        assert generated(model, ids(PROMPT), past_key_values=cache) == plain
        assert cache.nbytes > 0 and cache.get_seq_length() == len(PROMPT) + 11


@pytest.mark.parametrize("table", POLICIES, ids=lambda table: table["technique"])
def test_the_same_slots_stay_as_in_the_engine(table: dict[str, Any]) -> None:
    ours = tiny_model()
    model, engine = twin_of(ours), Engine(ours, threads=1, native=False, prefix_tree=False)
    with engine.submit(
        Request(prompt=DISTINCT, sampling=SamplingParameters(max_tokens=40, ignore_eos=True), cache=[table])
    ) as handle:
        told = [next(iter(handle)).token]
        (sequence,) = engine._scheduler.sequences()
        theirs = slots(sequence.cache)
        with compressed_cache(model, recipe(table)) as cache, torch.no_grad():
            model(ids(DISTINCT), past_key_values=cache)
            kept = slots(cache.sequences[0])
        told += list(handle.tokens())
    assert kept == theirs
    with compressed_cache(model, recipe(table)) as cache:
        assert generated(model, ids(DISTINCT), 40, past_key_values=cache) == [told]
    engine.close()


def slots(cache: Any) -> list[list[list[int]]]:
    views = [cache.view(layer) for layer in range(cache.model.layers)]
    return [[view.positions(head).tolist() for head in range(view.kv_heads)] for view in views]


def test_a_batch_padded_on_the_left_answers_as_each_row_alone(model: Any) -> None:
    short = PROMPT[:200]
    table = {"technique": "snapkv", "keep": 0.3}
    alone = []
    for row in (PROMPT, short):
        with compressed_cache(model, recipe(table)) as cache:
            alone += generated(model, ids(row), past_key_values=cache)
    padded = ids(PROMPT, [0] * 100 + short)
    mask = torch.ones_like(padded)
    mask[1, :100] = 0
    with compressed_cache(model, recipe(table)) as cache:
        assert generated(model, padded, past_key_values=cache, attention_mask=mask) == alone
        assert [sequence.length for sequence in cache.sequences] == [311, 211]
    mask[1] = mask[1].flip(0)
    with compressed_cache(model, recipe(table)) as cache, pytest.raises(PromptError, match="pad the left side"):
        generated(model, padded, past_key_values=cache, attention_mask=mask)


def test_a_second_turn_goes_on_from_the_compressed_one(model: Any) -> None:
    with compressed_cache(model, recipe({"technique": "snapkv", "keep": 0.5})) as cache, torch.no_grad():
        model(ids(PROMPT), past_key_values=cache)
        first = slots(cache.sequences[0])[0][0]
        model(ids(PROMPT[:150]), past_key_values=cache)
        assert cache.sequences[0].length == 450 and cache.get_seq_length() == 450
        assert len(slots(cache.sequences[0])[0][0]) < len(first) + 150


def test_attention_is_restored_whatever_is_raised(model: Any) -> None:
    before, registered = implementation(model), set(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS)
    hooks = (len(model._forward_hooks), len(model._forward_pre_hooks))
    plain = generated(model, ids(PROMPT))
    with pytest.raises(ZeroDivisionError), compressed_cache(model, recipe(POLICIES[0])) as cache:
        assert implementation(model).startswith("thrifty-")
        generated(model, ids(PROMPT), past_key_values=cache)
        raise ZeroDivisionError
    with pytest.raises(RecipeError), compressed_cache(model, recipe({"technique": "kvzip", "keep": 0.5})):
        pass
    assert implementation(model) == before
    assert set(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS) == registered
    assert (len(model._forward_hooks), len(model._forward_pre_hooks)) == hooks
    assert generated(model, ids(PROMPT)) == plain and cache.sequences == []


def test_a_pass_that_breaks_off_leaves_no_rows(model: Any) -> None:
    with compressed_cache(model, recipe(POLICIES[0])) as cache, torch.no_grad():
        last = model.model.layers[-1]
        handle = last.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(ids(PROMPT), past_key_values=cache)
        handle.remove()
        model(ids(PROMPT), past_key_values=cache)
        assert cache.sequences[0].length == len(PROMPT)
        handle = last.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(ids([65]), past_key_values=cache)
        handle.remove()
        model(ids([65]), past_key_values=cache)
        assert cache.sequences[0].length == len(PROMPT) + 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"decoding": [{"technique": "prompt-lookup"}]}, "decoding technique 'prompt-lookup' .* needs the engine"),
        ({"weights": [{"technique": "rtn", "bits": 4}]}, "weights technique 'rtn' changes the weights"),
        ({"cache": [{"technique": "kvzip", "keep": 0.5}]}, "'kvzip' runs the model behind the prompt again"),
        ({"cache": [{"technique": "quest"}]}, "'quest' lets every row choose its pages"),
        ({"cache": [{"technique": "kivi", "bits": 2, "causal": True}]}, "acts on all layers at every 128 tokens"),
        ({"cache": [{"technique": "streaming", "window": "budget"}]}, "'streaming' .* needs the engine"),
    ],
)
def test_what_needs_the_engine_is_refused_by_name(model: Any, document: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message), compressed_cache(model, document):
        pass


def test_uses_that_it_does_not_do_are_refused_by_name(model: Any) -> None:
    tokens, table = ids(PROMPT), recipe(POLICIES[0])
    with compressed_cache(model, table) as cache, pytest.raises(PromptError, match="beam search"):
        generated(model, tokens, past_key_values=cache, num_beams=2)
    with compressed_cache(model, table), pytest.raises(PromptError, match="pass past_key_values=cache"):
        generated(model, tokens)
    with compressed_cache(model, table) as cache, pytest.raises(PromptError, match="no gradients"):
        model(tokens, past_key_values=cache)
    with compressed_cache(model, table) as cache, torch.no_grad():
        model(tokens, past_key_values=cache)
        with pytest.raises(PromptError, match="batch has 2 rows"):
            model(ids([65], [66]), past_key_values=cache)
        with pytest.raises(PromptError, match="crop"):
            cache.crop(1)
        with pytest.raises(PromptError, match="reset"):
            cache.reset()
    inside = pytest.raises(ConfigError, match="inside another compressed_cache")
    with compressed_cache(model, table), inside, compressed_cache(model, table):
        pass
    other = pytest.raises(ConfigError, match="is no model of the transformers library")
    with other, compressed_cache(object(), table):
        pass


def test_windowed_layers_hold_their_window() -> None:
    config = transformers.MistralConfig(
        vocab_size=300, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=100,
    )  # fmt: skip
    torch.manual_seed(0)
    windowed = transformers.MistralForCausalLM(config).eval()
    plain = generated(windowed, ids(PROMPT))
    with compressed_cache(windowed, {}) as cache:
        assert isinstance(cache, Past) and generated(windowed, ids(PROMPT), past_key_values=cache) == plain
        assert len(slots(cache.sequences[0])[0][0]) < 200


def test_bf16_models_have_a_bf16_cache(folder: Path) -> None:
    small = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with compressed_cache(small, recipe(POLICIES[0])) as cache:
        generated(small, ids(PROMPT), past_key_values=cache)
        assert cache.rows.model.format == "bf16"
