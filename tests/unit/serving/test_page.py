"""The page's files: what is sent, under which policy, and that nothing in them reaches elsewhere."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from tests.unit.serving.live import Live, get, live

FILES = resources.files("thrifty.serving.page") / "files"
NAMES = sorted(file.name for file in FILES.iterdir())


def test_the_page_is_sent_under_a_strict_policy(server: Live) -> None:
    answer = get(server, "/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in policy and "*" not in policy and "http" not in policy
    assert "frame-ancestors 'none'" in policy and answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_sent_and_names_no_other_place(server: Live, name: str) -> None:
    answer = get(server, f"/page/{name}")
    assert answer.status_code == 200 and answer.content == (FILES / name).read_bytes()
    places = re.findall(r"https?://[\w./-]+", answer.text)
    assert set(places) <= {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in answer.text and "eval(" not in answer.text and " style=" not in answer.text


def test_no_other_file_is_sent(server: Live) -> None:
    for path in ("/page/../app.py", "/page/routes.py", "/page/%2e%2e%2fapp.py", "/page/", "/page/x/index.html"):
        assert get(server, path).status_code == 404


def test_the_page_needs_no_key_and_what_it_asks_for_does() -> None:
    with live(api_keys=("secret",)) as running:
        assert get(running, "/").status_code == 200
        assert get(running, "/page/app.js").status_code == 200
        assert get(running, "/v1/models").status_code == 401
        assert get(running, "/page/../v1/models").status_code in (401, 404)
