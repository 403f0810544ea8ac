from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.stopping import Stopper, StopStrings


class Letters:
    """A token is a letter; the last one is held until the next, like half a character. A digit is a control token."""

    def __init__(self) -> None:
        self.held = ""

    def push(self, token: int) -> str:
        if chr(token).isdigit():
            out, self.held = self.held, ""
            return out
        out, self.held = self.held, chr(token)
        return out

    def hidden(self, token: int) -> str:
        return f"<{chr(token)}>" if chr(token).isdigit() else ""

    def flush(self) -> str:
        out, self.held = self.held, ""
        return out


def run(text: str, maximum: int = 100, ends: tuple[str, ...] = (), **options: object) -> tuple[list[str], str | None]:
    parameters = SamplingParameters.of(**options)
    stopper = Stopper(parameters, Letters(), [ord(end) for end in ends], maximum)
    pieces = []
    for letter in text:
        piece, reason = stopper.push(ord(letter))
        pieces.append(piece)
        if reason is not None:
            return pieces, reason
    return pieces, None


def test_text_is_withheld_until_it_cannot_be_a_stop_string() -> None:
    strings = StopStrings(["abc", "bd"])
    assert strings.push("xa") == ("x", False)
    assert strings.push("b") == ("", False)
    assert strings.push("b") == ("ab", False)
    assert strings.push("d!") == ("", True)


def test_the_earliest_stop_string_wins_whatever_the_order() -> None:
    assert StopStrings(["later", "now"]).push("a now b later") == ("a ", True)


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(1, 4),
)
def test_any_chunking_gives_the_text_before_the_first_stop_string(text: str, stops: list[str], size: int) -> None:
    strings, shown, found = StopStrings(stops), "", False
    for start in range(0, len(text), size):
        piece, found = strings.push(text[start : start + size])
        shown += piece
        if found:
            break
    if not found:
        shown += strings.flush()
    assert found == any(stop in text for stop in stops)
    if found:
        assert text.startswith(shown)
        assert any(text.startswith(stop, len(shown)) for stop in stops)
        assert not any(stop in shown for stop in stops)
    else:
        assert shown == text


def test_stop_strings_cross_token_boundaries() -> None:
    pieces, reason = run("hello END more", stop=("END",))
    assert ("".join(pieces), reason) == ("hello ", "stop")


def test_a_stop_string_may_end_with_the_last_allowed_token() -> None:
    pieces, reason = run("abXYcd", maximum=4, stop=("XY",))
    assert ("".join(pieces), reason) == ("ab", "stop")
    pieces, reason = run("abXcd", maximum=3, stop=("XY",))
    assert ("".join(pieces), reason) == ("abX", "length"), "withheld text comes out at the end"


@pytest.mark.parametrize("end", ["!", "?"])
def test_every_end_of_sequence_id_counts_and_adds_no_text(end: str) -> None:
    pieces, reason = run(f"ab{end}cd", ends=("!", "?"))
    assert ("".join(pieces), reason) == ("ab", "stop")


def test_ignore_eos_goes_on_but_own_stop_ids_still_count() -> None:
    pieces, reason = run("ab!cd?e", ends=("!",), ignore_eos=True, stop_token_ids=(ord("?"),))
    assert ("".join(pieces), reason) == ("ab!cd", "stop")


def test_length() -> None:
    assert run("abcdef", maximum=3) == (["", "a", "bc"], "length")


def test_forced_tokens_show_their_text_and_end_nothing_but_by_the_length() -> None:
    stopper = Stopper(SamplingParameters.of(stop=["ab"]), Letters(), [ord("!")], 7, forced=4)
    found = [stopper.push(ord(letter)) for letter in "ab!xab"]
    assert [text for text, _ in found] == ["", "a", "b", "!", "x", ""]
    assert [reason for _, reason in found] == [None] * 6
    assert stopper.push(ord("c")) == ("", "stop")
    whole = Stopper(SamplingParameters(), Letters(), [ord("!")], 2, forced=2)
    assert [whole.push(ord(letter)) for letter in "!a"] == [("", None), ("!a", "length")]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("<1>", "ab"),
        ("b<1>", "a"),
        ("<1>c", "ab"),
        ("b<1>c", "a"),
        ("<1>c<2>d", "ab"),
        ("<2>", "abc"),
        ("<3>", "abcd"),
        ("d<3>", "abc"),
        ("1", "ab"),
    ],
)
def test_stop_strings_see_control_tokens(stop: str, expected: str) -> None:
    pieces, reason = run("ab1c2d3e", stop=(stop, "never"))
    assert ("".join(pieces), reason) == (expected, "stop")


def test_a_stop_string_that_ends_with_the_end_of_the_answer_cuts_its_text() -> None:
    pieces, reason = run("abc1", ends=("1",), stop=("c<1>",))
    assert ("".join(pieces), reason) == ("ab", "stop")
    pieces, reason = run("abc1", ends=("1",), stop=("<1>",), ignore_eos=True)
    assert ("".join(pieces), reason) == ("abc", "stop")


def test_control_tokens_that_begin_no_stop_string_are_never_shown() -> None:
    pieces, reason = run("a1b2c", stop=("<1>c", "<2>d"))
    assert ("".join(pieces) + "c", reason) == ("abc", None)


@given(st.text("ab12", max_size=20), st.lists(st.text("ab<1>2", min_size=1, max_size=5), min_size=1, max_size=3))
def test_the_text_before_the_first_stop_string_is_shown_without_its_control_tokens(text: str, stops: list[str]) -> None:
    spelled = "".join(f"<{letter}>" if letter.isdigit() else letter for letter in text)
    visible = "".join("..." if letter.isdigit() else letter for letter in text)
    stopper = Stopper(SamplingParameters.of(stop=stops), Letters(), [], 100)
    shown, reason = "", None
    for letter in text:
        piece, reason = stopper.push(ord(letter))
        shown += piece
        if reason is not None:
            break
    shown += stopper.flush() if reason is None else ""
    places = [place for place in map(spelled.find, stops) if place >= 0]
    assert shown == visible[: min(places, default=len(visible))].replace(".", "")


class Words:
    """A token is a place in a list of words; "" is half a character, whose text comes with the next."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def push(self, token: int) -> str:
        return self.words[token]

    def hidden(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("words", "stop", "forced", "told"),
    [
        (["one ", "two ", "STOP"], "STOP", 0, 2),
        (["one ", "two", "S", "TO", "P"], "STOP", 0, 2),
        (["one ", "twoS", "TOP"], "STOP", 0, 1),  # a word that ends inside the stop string goes whole
        (["STOP"], "STOP", 0, 0),
        (["one ", "", "é", "", "à"], "à", 0, 3),
        (["one ", "two ", "STOP"], "STOP", 2, 2),
        (["one ", "two "], "STOP", 0, None),
    ],
)
def test_tokens_before_a_stop_string_are_counted(words: list[str], stop: str, forced: int, told: int | None) -> None:
    stopper = Stopper(SamplingParameters.of(stop=[stop]), Words(words), [], 100, forced)
    text = ""
    for token in range(len(words)):
        piece, reason = stopper.push(token)
        text += piece
        assert (reason == "stop") == (token == len(words) - 1 and told is not None)
    assert stopper.told == told
    if told is not None:
        assert text.startswith("".join(words[:told]))
