"""Sessions on the disk: what was saved goes on as if nothing had happened, and no other file is believed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.conversations.ending import close
from tests.unit.engine.conversations.test_sessions import MORE, PROMPT, RECIPES, ask, talk

from thrifty.engine.engine import Engine
from thrifty.engine.sessions import files
from thrifty.errors import BudgetError, SessionError
from thrifty.models.model import Model


def next_prompt(first: Any) -> list[int]:
    return [*text_tokens(PROMPT), *first.token_ids, *text_tokens(MORE, 50)]


@pytest.mark.parametrize("name", RECIPES)
def test_another_engine_goes_on_as_the_first_would_have(model: Model, tmp_path: Path, name: str) -> None:
    recipe = RECIPES[name]
    engine, other = Engine(model), Engine(model)
    (first,) = talk(engine, recipe, turns=1)
    path = engine.sessions.save("a", tmp_path)
    assert path.parent == tmp_path and path.name == "a.session"
    expected = engine.submit(ask(next_prompt(first), recipe)).result()
    other.sessions.restore("a", tmp_path)
    (facts,) = other.sessions.facts()
    assert (facts.turns, facts.tokens) == (1, PROMPT + len(first.token_ids))
    assert other.usage().bytes_of("sessions") > 0 and other.usage().bytes_of("cache") == 0
    result = other.submit(ask(next_prompt(first), recipe)).result()
    assert result.usage.cached_tokens == expected.usage.cached_tokens > 0
    assert result.logprobs == expected.logprobs
    for each in (engine, other):
        close(each)


def test_a_session_that_lies_on_the_disk_tier_is_saved_from_there(model: Model, tmp_path: Path) -> None:
    engine = Engine(model, prefix_tree=False)
    (first,) = talk(engine, RECIPES["kivi"], turns=1)
    engine.memory.cache.pressure(1 << 40)
    assert engine.sessions.facts()[0].disk > 0
    engine.sessions.save("a", tmp_path)
    engine.sessions.restore("a", tmp_path)
    assert engine.sessions.facts()[0].disk == 0, "the new one takes the place of the old"
    assert engine.submit(ask(next_prompt(first), RECIPES["kivi"])).result().usage.cached_tokens > PROMPT
    close(engine)


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    engine = Engine(model)
    talk(engine, RECIPES["kivi"], turns=1)
    path = engine.sessions.save("a", tmp_path)
    close(engine)
    return path


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda content: content[:-1], "checksum"),
        (lambda content: content[: len(content) // 2], "checksum"),
        (lambda content: content[:20], "checksum"),
        (lambda content: b"", "no session file"),
        (lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:], "checksum"),
        (lambda content: b"GGUF" + content[4:], "no session file"),
    ],
)
def test_a_torn_or_changed_file_is_refused_by_name(model: Model, saved: Path, harm: Any, message: str) -> None:
    saved.write_bytes(harm(saved.read_bytes()))
    engine = Engine(model)
    with pytest.raises(SessionError, match=f"a.session' is refused.*{message}") as error:
        engine.sessions.restore("a", saved.parent)
    assert error.value.code == "session_file" and len(engine.memory.sessions) == 0
    close(engine)


def test_files_of_other_models_names_and_keys_are_refused(model: Model, saved: Path) -> None:
    engine = Engine(tiny_model(packed=True, seed=5))
    with pytest.raises(SessionError, match="of another model"):
        engine.sessions.restore("a", saved.parent)
    close(engine)
    engine = Engine(model)
    with pytest.raises(SessionError, match="No such file"):
        engine.sessions.restore("a", saved.parent, salt="x")
    files.file_of(saved.parent, "a", "x").write_bytes(saved.read_bytes())
    with pytest.raises(SessionError, match="of another name, or of another key"):
        engine.sessions.restore("a", saved.parent, salt="x")
    close(engine)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("sequence", "length"), 10_000),
        (("sequence", "segments", 0, "capacity"), 1 << 50),
        (("sequence", "segments", 0, "format"), "int3"),
        (("sequence", "segments", 0, "layers"), [99]),
        (("sequence", "spans", 0), [[10_000, 64, None]]),
        (("sequence", "tail"), []),
        (("sequence", "due"), []),
        (("about", "recipe"), [{"technique": "no-such"}]),
        (("about", "tokens"), [1, 2]),
    ],
)
def test_a_hostile_file_with_a_right_checksum_is_refused(
    saved: Path, model: Model, place: tuple[Any, ...], value: Any
) -> None:
    facts, arrays = files.read(saved)
    inner: Any = facts
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    files.write(saved, facts, arrays)
    engine = Engine(model)
    with pytest.raises(SessionError, match="a.session' is refused"):
        engine.sessions.restore("a", saved.parent)
    assert len(engine.memory.sessions) == 0 and engine.usage().bytes_of("cache") == 0
    close(engine)


def test_a_full_disk_leaves_the_old_file(model: Model, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, engine = saved.read_bytes(), Engine(model)
    talk(engine, RECIPES["kivi"], turns=2)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SessionError, match="No space left on device. Free some space"):
            engine.sessions.save("a", saved.parent)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]
    close(engine)


def test_what_does_not_fit_is_refused_with_nothing_taken(model: Model, saved: Path) -> None:
    free = Engine(model)
    need = free.memory.footprint((), 2, 3).peak_bytes
    close(free)
    engine = Engine(model, memory=model.nbytes + free.memory.workspace + need)
    with pytest.raises(BudgetError):
        engine.sessions.restore("a", saved.parent)
    assert engine.usage().bytes_of("cache") == engine.usage().bytes_of("sessions") == 0
    close(engine)


def test_names_that_are_no_names_of_files(model: Model, tmp_path: Path) -> None:
    engine = Engine(model)
    for name in ("../up", "a/b", "é" * 128):
        engine.submit(ask(text_tokens(70), [], name, steps=2)).result()
        path = engine.sessions.save(name, tmp_path)
        assert path.parent == tmp_path and path.exists()
        engine.sessions.restore(name, tmp_path)
    with pytest.raises(SessionError, match="no session 'b'"):
        engine.sessions.save("b", tmp_path)
    close(engine)
