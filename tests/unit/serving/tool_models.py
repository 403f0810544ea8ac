"""Tiny models whose chat templates teach calls, one for each format."""

from __future__ import annotations

from typing import Any

from tests.small_tokenizers import byte_level
from tests.tiny import tiny_config, tiny_model

from thrifty.engine.engine import Engine
from thrifty.models.model import Model
from thrifty.models.tokens.settings import TokenizerSettings
from thrifty.models.tokens.tokenizer import Tokenizer

HERMES = """{% if tools %}Tools in <tool_call></tool_call>:{% for tool in tools %} {{ tool | tojson }}{% endfor %}
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content or '' }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments | tojson }}</tool_call>{% endfor %}
<|im_end|>{% endfor %}<|im_start|>assistant: """
MISTRAL = (
    HERMES.replace("<tool_call></tool_call>", "[TOOL_CALLS]").replace("<tool_call>", "[").replace("</tool_call>", "]")
)
_BARE = HERMES.replace("<tool_call></tool_call>", '{"name": n, "parameters": p} ipython')
LLAMA = _BARE.replace("<tool_call>", "").replace("</tool_call>", "")
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
TEMPLATES = {"hermes": HERMES, "mistral": MISTRAL, "llama": LLAMA, "plain": PLAIN}

SPECIAL = ("<|im_start|>", "<|im_end|>", "[TOOL_CALLS]", "<|python_tag|>")
ADDED = ("<tool_call>", "</tool_call>")
MARKERS = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "llama": "<|python_tag|>"}


def tool_model(kind: str) -> Model:
    """A packed random model over bytes and markers."""
    backend = byte_level(special=SPECIAL, added=ADDED)
    size = backend.get_vocab_size(with_added_tokens=True)
    ends = (backend.token_to_id("<|im_end|>"),)
    settings = TokenizerSettings(vocabulary_size=size, eos_ids=ends, chat_template=TEMPLATES[kind])
    model = tiny_model(packed=True, config=tiny_config(vocabulary_size=size + 2, bos_ids=(), eos_ids=ends))
    model.tokenizer = Tokenizer(backend.to_str(), settings)
    return model


def tool_engine(kind: str, **options: Any) -> Engine:
    """An engine over such a model."""
    return Engine(tool_model(kind), **{"memory": "64MB", "threads": 1, "batch": 16, **options})


def opening_bias(kind: str) -> dict[str, float]:
    """A logit bias that has an answer call at once."""
    token = tool_model(kind).tokenizer.backend.token_to_id(MARKERS[kind])
    return {str(token): 1000.0}


def never_ending_bias(kind: str) -> dict[str, float]:
    """A logit bias under which an answer goes on as long as its grammar lets it."""
    return {str(token): -1000.0 for token in tool_model(kind).tokenizer.eos_ids}
