"""/v1/embeddings and /v1/rerank."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

import numpy as np
import pytest
from tests.unit.serving.live import NAME, Live, chat_body, eventually, live, post, tiny_engine

PATH = "/v1/embeddings"


def embedded(server: Live, given: Any, **fields: Any) -> Any:
    answer = post(server, PATH, json={"model": NAME, "input": given, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_embedding_is_the_mean_of_the_final_hidden_states_of_length_one(server: Live) -> None:
    text = "rivers run to the sea " * 20
    vector = np.array(embedded(server, text)["data"][0]["embedding"], np.float32)
    engine = tiny_engine()
    mean = np.concatenate(list(engine.hidden_states(list(text.encode())))).mean(axis=0)
    engine.close()
    assert vector.shape == (128,)
    assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_texts_and_tokens_alone_and_together_are_the_same(server: Live) -> None:
    both = embedded(server, ["abc", "longer text"])
    assert [entry["index"] for entry in both["data"]] == [0, 1]
    assert both["usage"] == {"prompt_tokens": 14, "total_tokens": 14}
    assert both["data"][0]["embedding"] == embedded(server, "abc")["data"][0]["embedding"]
    assert both["data"][0]["embedding"] == embedded(server, [97, 98, 99])["data"][0]["embedding"]
    assert both["data"][1]["embedding"] == embedded(server, [[97], list(b"longer text")])["data"][1]["embedding"]


def test_base64_holds_the_same_numbers(server: Live) -> None:
    packed = embedded(server, "abc", encoding_format="base64")["data"][0]["embedding"]
    numbers = np.array(embedded(server, "abc")["data"][0]["embedding"], np.float32)
    assert np.array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), numbers)


def test_openais_client_reads_them(server: Live) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    (entry,) = client.embeddings.create(model=NAME, input="abc").data
    assert np.allclose(entry.embedding, embedded(server, "abc")["data"][0]["embedding"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"dimensions": 12}, "dimensions"), ({"encoding_format": "int8"}, "encoding_format"), ({"input": []}, "input")],
)
def test_what_is_not_supported_is_named(server: Live, fields: dict[str, Any], param: str) -> None:
    answer = post(server, PATH, json={"model": NAME, "input": "a", **fields})
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith(param)
    assert post(server, PATH, json={"model": NAME, "input": "x" * 5000}).status_code == 400
    assert post(server, PATH, json={"model": NAME, "input": ["a", ""]}).status_code == 400


def test_chats_go_on_while_texts_are_embedded_and_change_nothing(server: Live) -> None:
    body = chat_body("between", max_tokens=200, ignore_eos=True)
    alone = post(server, "/v1/chat/completions", json=body).json()["choices"]
    vectors = embedded(server, ["q" * 3000])["data"]
    answers: list[Any] = []
    reader = threading.Thread(
        target=lambda: answers.append(post(server, "/v1/chat/completions", json=body).json()["choices"])
    )
    reader.start()
    assert embedded(server, ["q" * 3000] * 3)["data"][0] == vectors[0]
    reader.join()
    assert answers == [alone]
    assert eventually(lambda: server.held() == 0)


def test_a_text_that_others_leave_no_memory_for_is_a_429() -> None:
    with live(lambda: tiny_engine(memory="6MB", chunk=128)) as running:
        assert running.engine is not None
        text = "m" * (running.engine.memory.longest((), 4096, 4096) - 100)
        assert post(running, PATH, json={"model": NAME, "input": text}).status_code == 200
        taken = running.engine.hidden_states(list(text.encode()))
        next(taken)
        answer = post(running, PATH, json={"model": NAME, "input": text})
        taken.close()  # type: ignore[attr-defined]
        assert answer.status_code == 429 and "Retry-After" in answer.headers
        assert post(running, PATH, json={"model": NAME, "input": text}).status_code == 200
        assert running.held() == 0


def test_a_client_that_hangs_up_ends_the_reading(server: Live) -> None:
    import httpx

    async def leave() -> None:
        async with httpx.AsyncClient() as client:
            body = {"model": NAME, "input": ["q" * 3000] * 200}
            with pytest.raises(httpx.ReadTimeout):
                await client.post(server.url + PATH, json=body, timeout=httpx.Timeout(5, read=0.3))

    asyncio.run(leave())
    assert eventually(lambda: server.held() == 0 and not _reads(server), 2)


def _reads(server: Live) -> bool:
    before = server.client.get(f"{server.url}/metrics").text
    threading.Event().wait(0.3)
    return server.client.get(f"{server.url}/metrics").text != before


def test_documents_are_ordered_by_their_cosine(server: Live) -> None:
    documents = ["zzzz 99", "what is a river", {"text": "what is a rivet"}, "QQQQ"]
    body = {"model": NAME, "query": "what is a river", "documents": documents}
    answer = post(server, "/v1/rerank", json=body).json()
    scores = [entry["relevance_score"] for entry in answer["results"]]
    assert answer["results"][0]["index"] == 1 and scores[0] == pytest.approx(1, abs=1e-5)
    assert answer["results"][1]["document"] == {"text": "what is a rivet"}
    assert scores == sorted(scores, reverse=True) and len(scores) == 4
    short = post(server, "/v1/rerank", json=body | {"top_n": 2, "return_documents": False}).json()
    assert [set(entry) for entry in short["results"]] == [{"index", "relevance_score"}] * 2
    assert post(server, "/v1/rerank", json=body | {"documents": []}).json()["error"]["param"] == "documents"
