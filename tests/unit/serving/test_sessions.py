"""Sessions over HTTP: a chat goes on from its compressed cache, and nobody sees another key's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.serving.live import Live, SlowEngine, chat_body, eventually, get, live, post, tiny_engine

CHAT = "/v1/chat/completions"
KIVI = {"cache": [{"technique": "kivi", "bits": 4, "residual": 64}]}
FIRST = "Tell me of the sea, of its ships and of those who sail on them, and leave nothing out. " * 2


@pytest.fixture(scope="module")
def keyed() -> Iterator[Live]:
    with live(lambda: tiny_engine(conversation_disk="8MB"), api_keys=("one", "two")) as running:
        yield running


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def say(server: Live, messages: list[dict[str, str]], owner: str = "one", **fields: Any) -> dict[str, Any]:
    """A turn; the answer goes behind the messages."""
    answer = post(server, CHAT, json=chat_body() | {"messages": messages} | fields, headers=key(owner))
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    messages.append(told["choices"][0]["message"])
    messages.append({"role": "user", "content": "And then?"})
    return told


def held(server: Live, owner: str = "one") -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = get(server, "/v1/sessions", headers=key(owner)).json()["data"]
    return data


def test_a_chat_goes_on_and_its_key_alone_sees_it(keyed: Live) -> None:
    messages, extension = [{"role": "user", "content": FIRST}], {"thrifty": KIVI | {"session": "sea"}}
    first = say(keyed, messages, **extension)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    again = say(keyed, messages, **extension)
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"], "the answer's rows too, whatever tokens its text is cut into"
    assert first["usage"]["thrifty"]["kv_bytes"] > 0 < again["usage"]["thrifty"]["kv_bytes"], "the session has them now"
    (mine,) = held(keyed)
    assert mine["id"] == "sea" and mine["turns"] == 2 and mine["memory_bytes"] > 0 and not mine["busy"]
    assert held(keyed, "two") == []
    assert keyed.client.delete(f"{keyed.url}/v1/sessions/sea", headers=key("two")).status_code == 404
    told = get(keyed, "/metrics", headers=key("one")).text
    assert 'thrifty:memory_bytes{model_name="tiny",owner="sessions"}' in told
    assert 'thrifty:sessions{model_name="tiny"} 1.0' in told
    assert keyed.client.delete(f"{keyed.url}/v1/sessions/sea", headers=key("one")).json()["deleted"] is True
    assert held(keyed) == []
    assert keyed.client.delete(f"{keyed.url}/v1/sessions/sea", headers=key("one")).status_code == 404


def test_without_a_session_the_same_recipe_reads_what_is_new_alone(keyed: Live) -> None:
    messages = [{"role": "user", "content": FIRST + "Twice."}]
    say(keyed, messages, thrifty=KIVI)
    again = say(keyed, messages, thrifty=KIVI)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 128
    assert "thrifty:conversation_disk_bytes" in get(keyed, "/metrics", headers=key("one")).text
    other = say(keyed, messages[:1], "two", thrifty=KIVI)
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "another key's pages are not found"


def test_another_beginning_is_refused_and_a_session_that_went_is_told_once(keyed: Live) -> None:
    extension = {"thrifty": KIVI | {"session": "other"}}
    say(keyed, [{"role": "user", "content": FIRST}], **extension)
    body = chat_body("Something else.") | extension
    refused = post(keyed, CHAT, json=body, headers=key("one"))
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "session_mismatch"
    assert refused.json()["error"]["param"] == "thrifty.session"
    assert keyed.engine is not None
    keyed.engine.memory.sessions._expire(1 << 30)  # as pressure does where the disk is full
    gone = post(keyed, CHAT, json=body, headers=key("one"))
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "session_expired")
    assert post(keyed, CHAT, json=body, headers=key("one")).status_code == 200


def test_what_is_no_name_is_a_400(keyed: Live) -> None:
    body = chat_body() | {"thrifty": {"session": ""}}
    assert post(keyed, CHAT, json=body, headers=key("one")).status_code == 400


def test_a_busy_session_and_a_client_that_hangs_up() -> None:
    with live(lambda: tiny_engine(SlowEngine)) as server:
        body = chat_body(max_tokens=2000, ignore_eos=True, stream=True) | {"thrifty": {"session": "a"}}
        with server.client.stream("POST", server.url + CHAT, json=body) as stream:
            lines = stream.iter_lines()  # held: dropping it hangs up
            next(lines)
            busy = post(server, CHAT, json=chat_body() | {"thrifty": {"session": "a"}})
            assert busy.status_code == 409, busy.text
            assert busy.json()["error"]["code"] == "session_busy"
        assert eventually(lambda: server.running() == 0)
        assert get(server, "/v1/sessions").json()["data"] == []
        assert eventually(lambda: server.held() == 0)


def test_a_session_outlives_the_server(tmp_path: Path) -> None:
    messages, extension = [{"role": "user", "content": FIRST}], {"thrifty": KIVI | {"session": "sea shore"}}
    where = "/v1/sessions/sea%20shore"
    with live(session_folder=tmp_path, api_keys=("one", "two")) as server:
        first = say(server, messages, **extension)
        assert told(server, f"{where}/save", 200)["saved"]
        assert told(server, f"{where}/save", 404, "two")["error"]["code"] == "session_not_found"
    (file,) = tmp_path.rglob("*.session")
    assert file.parent == tmp_path / "tiny"
    with live(session_folder=tmp_path, api_keys=("one", "two")) as server:
        assert told(server, f"{where}/restore", 404, "two")["error"]["code"] == "session_not_found"
        assert told(server, f"{where}/restore", 200)["restored"]
        again = say(server, messages, **extension)
        cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= first["usage"]["prompt_tokens"]
        file.write_bytes(file.read_bytes()[:-5])
        error = told(server, f"{where}/restore", 409)["error"]
        assert error["code"] == "session_file" and "checksum" in error["message"]
        assert str(tmp_path) not in error["message"], "no path of the server"


def test_without_a_folder_nothing_is_saved(keyed: Live) -> None:
    assert told(keyed, "/v1/sessions/a/save", 403)["error"]["message"].endswith("--session-folder")


def told(server: Live, path: str, status: int, owner: str = "one") -> dict[str, Any]:
    """What a POST without a body is answered."""
    answer = post(server, path, json={}, headers=key(owner))
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_turn_that_is_asked_again_or_edited_goes_back(keyed: Live) -> None:
    messages, extension = [{"role": "user", "content": FIRST}], {"thrifty": KIVI | {"session": "again"}}
    say(keyed, messages, **extension)
    turn = list(messages)
    first = say(keyed, messages, **extension)
    again = say(keyed, list(turn), **extension)
    assert again["choices"] == first["choices"]
    assert again["usage"]["prompt_tokens_details"] == first["usage"]["prompt_tokens_details"]
    edited = [*turn[:-1], {"role": "user", "content": "And of the land?"}]
    told = say(keyed, edited, **extension)
    assert told["usage"]["prompt_tokens_details"] == first["usage"]["prompt_tokens_details"]
    (mine,) = [session for session in held(keyed) if session["id"] == "again"]
    assert mine["turns"] == 2
