"""Where prompts go, without any cluster: by their known beginnings, within the bound on imbalance."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from thrifty.serving.cluster.prefix_router import PrefixRouter, RoundRobinRouter
from thrifty.serving.cluster.prompt_blocks import BLOCK, MOST_BLOCKS, blocks_of, session_of

CHAT = "/v1/chat/completions"


def blocks(*names: str) -> list[bytes]:
    """Beginnings of a prompt: "a", then "ab", then "abc"."""
    return ["".join(names[: end + 1]).encode() for end in range(len(names))]


def idle(*names: str) -> dict[str, int]:
    return dict.fromkeys(names, 0)


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text} for text in texts]} | fields


def test_a_prompt_goes_where_most_of_its_beginning_was_read() -> None:
    router = PrefixRouter()
    router.sent("first", blocks("a", "b", "c"))
    router.sent("second", blocks("a", "x"))
    assert router.ranked(blocks("a", "b", "z"), idle("first", "second"))[0] == "first"
    assert router.ranked(blocks("a", "x", "z"), idle("first", "second"))[0] == "second"
    assert router.known_blocks(blocks("a", "b", "z"), idle("first", "second")) == {"first": 2, "second": 1}


def test_unknown_prompts_go_to_the_least_loaded_and_take_turns_where_loads_are_equal() -> None:
    router = PrefixRouter()
    assert router.ranked(blocks("new"), {"first": 2, "second": 1, "third": 2})[0] == "second"
    chosen = []
    for number in range(6):
        best = router.ranked(blocks(str(number)), idle("first", "second", "third"))[0]
        router.sent(best, blocks(str(number)))
        chosen.append(best)
    assert sorted(chosen[:3]) == sorted(chosen[3:]) == ["first", "second", "third"]


def test_no_replica_gets_more_than_the_bound_however_popular_its_prefixes_are() -> None:
    router, loads = PrefixRouter(imbalance=1.25), idle("first", "second", "third", "fourth")
    for _ in range(100):
        best = router.ranked(blocks("all", "share", "this"), loads)[0]
        router.sent(best, blocks("all", "share", "this"))
        loads[best] += 1
        assert max(loads.values()) <= math.ceil(1.25 * sum(loads.values()) / 4)
    assert min(loads.values()) >= 10  # the others took what the first one could not


def test_loads_that_end_make_room_for_the_prefix_again() -> None:
    router = PrefixRouter()
    router.sent("first", blocks("a", "b"))
    assert router.ranked(blocks("a", "b"), {"first": 9, "second": 0}) == ["second", "first"]
    assert router.ranked(blocks("a", "b"), {"first": 0, "second": 0}) == ["first", "second"]


def test_random_conversations_read_less_anew_than_with_round_robin() -> None:
    def read_anew(router: PrefixRouter) -> int:
        """Blocks that replicas did not have, of 12 conversations of 10 turns in a random order, four at a time."""
        order = [name for name in "abcdefghijkl" for _ in range(10)]
        random.Random(7).shuffle(order)
        said: dict[str, list[str]] = {}
        loads, running, missing = idle("first", "second", "third"), [], 0
        for name in order:
            turns = said.setdefault(name, ["system"])
            turns.append(f"{name}{len(turns)}")
            prompt = blocks(*turns)
            best = router.ranked(prompt, loads)[0]
            missing += len(prompt) - PrefixRouter.known_blocks(router, prompt, loads)[best]
            router.sent(best, prompt)
            loads[best] += 1
            running.append(best)
            if len(running) > 4:
                loads[running.pop(0)] -= 1
        return missing

    assert read_anew(PrefixRouter()) < 0.75 * read_anew(RoundRobinRouter())


def test_a_session_stays_where_its_cache_lies_whatever_the_load() -> None:
    for router in (PrefixRouter(), RoundRobinRouter()):
        router.sent("first", blocks("a"), session="chat")
        assert router.ranked(blocks("b"), {"first": 50, "second": 0}, session="chat")[0] == "first"
        assert router.ranked(blocks("b"), {"first": 50, "second": 0}, session="another")[0] == "second"


def test_who_is_gone_is_forgotten_and_its_prompts_go_elsewhere() -> None:
    router = PrefixRouter()
    router.sent("first", blocks("a", "b"), session="chat")
    router.keep_only(idle("second", "third"))
    assert set(router.ranked(blocks("a", "b"), idle("second", "third"), session="chat")) == {"second", "third"}
    router.sent("second", blocks("a", "b"), session="chat")
    assert router.ranked(blocks("a", "b"), idle("second", "third"), session="chat")[0] == "second"


def test_what_was_not_sent_for_long_is_forgotten_first_and_beginnings_last() -> None:
    router = PrefixRouter(blocks=4)
    router.sent("first", blocks("a", "b", "c"))
    router.sent("second", blocks("x", "y"))
    assert router.known_blocks(blocks("x", "y"), idle("first", "second"))["second"] == 2
    assert router.known_blocks(blocks("a", "b", "c"), idle("first", "second"))["first"] == 2


def test_round_robin_takes_turns_whatever_is_known() -> None:
    router, chosen = RoundRobinRouter(), []
    for _ in range(4):
        chosen.append(router.ranked(blocks("a", "b"), idle("first", "second"))[0])
        router.sent(chosen[-1], blocks("a", "b"))
    assert chosen in (["first", "second"] * 2, ["second", "first"] * 2)


@pytest.mark.parametrize("options", [{"imbalance": 0.9}, {"blocks": 0}])
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        PrefixRouter(**options)


def test_equal_beginnings_have_equal_names_and_what_differs_has_others() -> None:
    long = "word " * 200
    first = blocks_of(CHAT, chat(long, "one" * BLOCK), None)
    second = blocks_of(CHAT, chat(long, "two" * BLOCK), None)
    shared = len(long) // BLOCK
    assert len(first) >= shared and first[:shared] == second[:shared] and first[shared + 1 :] != second[shared + 1 :]
    assert not set(first) & set(blocks_of(CHAT, chat("x" + long), None))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "another"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"thrifty": {"cache": [{"technique": "kivi", "bits": 4}]}},
        {"chat_template_kwargs": {"thinking": True}},
    ],
)
def test_what_stands_before_a_prompt_is_part_of_its_beginning(change: dict[str, Any]) -> None:
    long = "word " * 200
    assert not set(blocks_of(CHAT, chat(long), None)) & set(blocks_of(CHAT, chat(long, **change), None))


def test_prefixes_of_two_keys_are_apart_as_they_are_in_a_replica() -> None:
    long = chat("word " * 200)
    assert not set(blocks_of(CHAT, long, "one")) & set(blocks_of(CHAT, long, "two"))
    assert not set(blocks_of(CHAT, long, None)) & set(blocks_of(CHAT, long, "None"))


def test_a_session_is_no_part_of_the_beginning() -> None:
    long = "word " * 200
    one, two = (chat(long, thrifty={"session": name, "cache_memory": "1MB"}) for name in ("one", "two"))
    assert blocks_of(CHAT, one, None) == blocks_of(CHAT, two, None)
    assert session_of("POST", CHAT, one, None) == session_of("POST", CHAT, chat("x", thrifty={"session": "one"}), None)
    assert session_of("POST", CHAT, one, None) != session_of("POST", CHAT, two, None)
    assert session_of("POST", CHAT, chat(long), None) is None and session_of("POST", CHAT, {"thrifty": 3}, None) is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v1/sessions/a/b"),
        ("POST", "/v1/sessions/a/b/save"),
        ("POST", "/v1/sessions/a/b/restore"),
    ],
)
def test_what_is_done_to_a_session_is_done_where_it_lies(method: str, path: str) -> None:
    home = session_of("POST", CHAT, chat("x", thrifty={"session": "a/b"}), "key")
    assert home is not None and session_of(method, path, {}, "key") == home
    router = PrefixRouter()
    router.sent("second", [], home)
    assert router.ranked([], {"first": 0, "second": 3}, session_of(method, path, {}, "key"))[0] == "second"


def test_sessions_of_one_name_are_apart_by_key() -> None:
    body = chat("x", thrifty={"session": "chat"})
    assert len({session_of("POST", CHAT, body, key) for key in ("one", "two", None, "None")}) == 4


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "word " * 200}),
        ("/v1/completions", {"prompt": list(range(300))}),
        ("/v1/responses", {"input": "word " * 200}),
        ("/v1/responses", {"input": [{"role": "user", "content": "word " * 200}]}),
        ("/v1/messages", {"system": "word " * 200, "messages": [{"role": "user", "content": "hello"}]}),
    ],
)
def test_every_endpoint_that_generates_has_beginnings(path: str, body: dict[str, Any]) -> None:
    assert len(blocks_of(path, body, None)) >= 3


def test_endpoints_that_share_nothing_have_none() -> None:
    assert blocks_of("/v1/embeddings", {"input": "word " * 200}, None) == []


@pytest.mark.parametrize("body", [{}, {"messages": 3}, {"messages": [3, None, "x", {"role": 4}]}, {"prompt": {"a": 1}}])
def test_bodies_that_make_no_sense_do_no_harm(body: dict[str, Any]) -> None:
    assert blocks_of(CHAT, body, None) == []


def test_a_long_prompt_has_a_bounded_number() -> None:
    assert len(blocks_of(CHAT, chat("x" * (10 << 20)), None)) == MOST_BLOCKS
