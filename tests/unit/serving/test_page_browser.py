"""The page in Chromium: a chat, a comparison, a dashboard, under the page's own policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.chromium import asked_for, chromium, needs_chromium, show
from tests.unit.serving.live import Live, SlowEngine, get, live, shelf, tiny_engine

from thrifty.serving.served_model import ModelSource

needs_chromium()

from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

pytestmark = pytest.mark.long

MARKDOWN = """# Title

Text with `code`, **strong**, *weak*, [a link](https://example.org/x) and [a bad one](javascript:alert(1)).

- one
  - inner
- two

3. three

> quoted <script>document.title = "taken"</script>

| a | b |
|---|---|
| 1 | <img src=x onerror="document.title='taken'"> |

```python
print("<b>&amp;</b>")
```
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="module")
def calm() -> Iterator[Live]:
    """Slow enough to be stopped."""

    def make() -> Any:
        engine = tiny_engine(SlowEngine)
        engine.pause = 0.02  # type: ignore[attr-defined]
        return engine

    with live(make) as running:
        yield running


def opened(browser: Any, server: Live, width: int = 1280, theme: str = "light", tab: str = "") -> Any:
    show(browser, "about:blank", width, theme)
    browser.get(f"{server.url}/")
    browser.execute_script("localStorage.clear(); sessionStorage.clear()")
    browser.get("about:blank")
    browser.get(f"{server.url}/{tab}")
    until(lambda: "tiny" in browser.find_element("id", "model").text)
    return browser


def until(holds: Callable[[], Any], seconds: float = 10) -> Any:
    end = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)
    return value


def texts(browser: Any) -> list[str]:
    return [node.text for node in browser.find_elements("css selector", ".message .text")]


def set_value(browser: Any, name: str, value: str) -> None:
    script = "const [id, value] = arguments, node = document.getElementById(id); node.value = value;"
    browser.execute_script(script + "node.dispatchEvent(new Event('input', {bubbles: true}))", name, value)


def is_idle(browser: Any) -> bool:
    return bool(browser.find_element("id", "send").is_enabled())


def say(browser: Any, text: str, tokens: int = 12) -> None:
    set_value(browser, "temperature", "0")
    set_value(browser, "max-tokens", str(tokens))
    browser.find_element("id", "prompt").send_keys(text, Keys.ENTER)


def test_it_logs_nothing_and_asks_its_own_server_alone(browser: Any, server: Live) -> None:
    opened(browser, server)  # what the browser's own first page asks for lies before
    asked_for(browser), browser.get_log("browser")
    opened(browser, server)
    say(browser, "hello")
    until(lambda: is_idle(browser) and len(texts(browser)) == 2)
    assert browser.get_log("browser") == []
    urls = [url for _, url in asked_for(browser)]
    assert urls and all(url.startswith(server.url) or url == "about:blank" for url in urls)


def test_an_answer_is_that_of_the_server_with_its_figures(browser: Any, server: Live) -> None:
    opened(browser, server)
    say(browser, "hello there")
    until(lambda: is_idle(browser) and len(texts(browser)) == 2)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 12}
    answer = server.client.post(f"{server.url}/v1/chat/completions", json=body | {"temperature": 0}).json()
    assert texts(browser) == ["hello there", " ".join(answer["choices"][0]["message"]["content"].split())]
    figures = browser.find_element("css selector", ".assistant .figures").text
    assert "12 tokens" in figures and "tok/s" in figures and "first after" in figures and "cached" in figures


def test_an_answer_that_grows_stays_in_sight_above_the_field_for_the_next_question(browser: Any, server: Live) -> None:
    opened(browser, server)
    for number in range(1, 4):
        say(browser, "a question of some words " * 30, 300)
        until(lambda number=number: is_idle(browser) and len(texts(browser)) == 2 * number, 30)
    bottom, field = (
        browser.execute_script(f"return document.querySelector('{place}').getBoundingClientRect()")
        for place in (".message:last-child .tools", "#chat-form")
    )
    assert browser.execute_script("return document.body.scrollHeight > window.innerHeight + 300"), "nothing to scroll"
    assert bottom["bottom"] <= field["top"] + 1


def test_a_reader_who_scrolled_back_is_left_there(browser: Any, calm: Live) -> None:
    opened(browser, calm)
    for _ in range(3):
        say(browser, "some words " * 60, 4)
        until(lambda: is_idle(browser))
    say(browser, "more " * 60, 200)
    until(lambda: len(texts(browser)[-1]) > 20)
    browser.execute_script("window.scrollTo(0, 0)")
    before = len(texts(browser)[-1])
    until(lambda: len(texts(browser)[-1]) > before + 20)
    assert browser.execute_script("return window.scrollY") == 0
    browser.find_element("id", "prompt").send_keys(Keys.ESCAPE)
    until(lambda: is_idle(browser))


def test_an_answer_is_stopped_by_escape_and_frees_its_memory(browser: Any, calm: Live) -> None:
    opened(browser, calm)
    say(browser, "a long one", 2000)
    until(lambda: calm.running() == 1 and len(texts(browser)[1]) > 5)
    browser.find_element("id", "prompt").send_keys(Keys.ESCAPE)
    until(lambda: is_idle(browser) and calm.running() == 0, 2)
    assert "stopped" in browser.find_element("css selector", ".assistant .figures").text


def test_a_question_is_edited_and_an_answer_made_anew(browser: Any, server: Live) -> None:
    opened(browser, server)
    for text in ("first", "second"):
        say(browser, text)
        until(lambda: is_idle(browser))
    before = until(lambda: len(texts(browser)) == 4 and texts(browser))
    buttons = browser.find_elements("css selector", ".message button")
    assert [button.text for button in buttons] == ["Edit", "Regenerate"] * 2
    buttons[-1].click()
    until(lambda: is_idle(browser) and texts(browser) == before)
    browser.find_elements("css selector", ".message button")[2].click()
    prompt = browser.find_element("id", "prompt")
    assert prompt.get_attribute("value") == "second" and texts(browser) == before[:2]
    prompt.send_keys(" and more", Keys.ENTER)
    until(lambda: is_idle(browser) and len(texts(browser)) == 4)
    assert texts(browser)[2] == "second and more"


def test_markdown_is_nodes_and_no_html_comes_through(browser: Any, server: Live) -> None:
    opened(browser, server)
    script = """
    const [text, done] = arguments, node = document.createElement("div");
    document.body.append(node);
    import("/page/markdown.js").then(({ render }) => { render(node, text); done(node.outerHTML); });
    """
    html = browser.execute_async_script(script, MARKDOWN)
    for part in (
        "<h3>Title</h3>", "<code>code</code>", "<strong>strong</strong>", "<em>weak</em>",
        '<a href="https://example.org/x" target="_blank" rel="noopener noreferrer">a link</a>',
        "[a bad one](javascript:alert(1))", '<ol start="3"><li>three</li></ol>', "<td>1</td>",
        "&lt;script&gt;", "&lt;img src=x", 'print("&lt;b&gt;&amp;amp;&lt;/b&gt;")',
    ):  # fmt: skip
        assert part in html, html
    assert "<ul><li>one" in html.replace("<p>", "").replace("</p>", "") and "<li>inner</li>" in html
    assert "<script" not in html and "<img" not in html and browser.title == "Thrifty"


@pytest.mark.parametrize(
    "text", ["*" * 3000, "[" * 3000, "`" * 2999, "> " * 2000, "- " * 2000, "|" * 3000 + "\n|-|", "**a" * 2000]
)
def test_strange_markdown_takes_no_time(browser: Any, server: Live, text: str) -> None:
    opened(browser, server)
    script = """
    const [text, done] = arguments, node = document.createElement("div"), began = performance.now();
    import("/page/markdown.js").then(({ render }) => { render(node, text); done(performance.now() - began); });
    """
    milliseconds = browser.execute_async_script(script, text)
    assert milliseconds < 500


def test_two_recipes_answer_side_by_side(browser: Any, server: Live) -> None:
    opened(browser, server, tab="#compare")
    set_value(browser, "temperature", "0")
    set_value(browser, "max-tokens", "30")
    Select(browser.find_element("id", "right-recipe")).select_by_visible_text("kivi, 2 bits")
    browser.find_element("id", "compare-prompt").send_keys("word " * 100)
    browser.find_element("id", "compare-run").click()
    until(lambda: browser.find_element("id", "difference").text)
    sides = [browser.find_element("id", side).text for side in ("left", "right")]
    assert all(sides)
    for side in ("left", "right"):
        assert "30 tokens" in browser.find_element("id", f"{side}-figures").text


def test_a_mistake_in_the_settings_is_told_as_the_server_tells_it(browser: Any, server: Live) -> None:
    opened(browser, server)
    set_value(browser, "bound", "1KB")
    say(browser, "hello")
    notice = browser.find_element("id", "notice")
    until(lambda: notice.is_displayed() and notice.text)
    assert "KB" in notice.text or "bytes" in notice.text
    assert is_idle(browser)


def test_one_of_several_models_is_chosen_from_a_list(browser: Any) -> None:
    def source(name: str) -> ModelSource:
        return ModelSource(name, lambda fits: tiny_engine())

    with shelf([source("first"), source("second")]) as running:
        browser.get(f"{running.url}/")
        models = browser.find_element("id", "models")
        until(models.is_displayed)
        Select(models).select_by_value("second")
        until(lambda: browser.find_element("id", "model").text == "loaded when asked")
        say(browser, "hello")
        until(lambda: is_idle(browser) and len(texts(browser)) == 2)
        loaded = {entry["id"]: entry["loaded"] for entry in get(running, "/v1/models").json()["data"]}
        assert loaded == {"first": False, "second": True}
        browser.find_element("id", "tab-server").click()
        until(lambda: "weights" in browser.find_element("id", "memory").text)


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Any) -> None:
    with live(api_keys=("secret",)) as running:
        browser.get(f"{running.url}/")
        notice = browser.find_element("id", "notice")
        until(lambda: "API key" in notice.text)
        browser.find_element("id", "settings-button").click()
        browser.find_element("id", "key").send_keys("secret", Keys.TAB)
        until(lambda: "tiny" in browser.find_element("id", "model").text and not notice.is_displayed())
        browser.refresh()
        until(lambda: "tiny" in browser.find_element("id", "model").text)
        assert browser.execute_script("return JSON.stringify(localStorage)").count("secret") == 0


def test_the_dashboard_shows_what_the_server_holds(browser: Any, server: Live) -> None:
    server.client.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "abc", "max_tokens": 9})
    opened(browser, server, tab="#server")
    until(lambda: "weights" in browser.find_element("id", "memory").text)
    assert "of the budget" in browser.find_element("id", "tiles").text
    rows = browser.find_elements("css selector", "#latency tbody tr")
    assert len(rows) == 5 and all("–" not in row.text for row in rows[:1])


def test_quantiles_lie_on_lines_between_the_bounds(browser: Any, server: Live) -> None:
    opened(browser, server)
    script = """
    const done = arguments[0], buckets = [[1, 0], [2, 10], [4, 20], [Infinity, 20]];
    import("/page/dashboard.js").then(({ quantile }) => done([quantile(buckets, 0.5), quantile(buckets, 0.75),
      quantile([[1, 4], [Infinity, 8]], 0.99), quantile([[1, 0], [Infinity, 0]], 0.5)]));
    """
    assert browser.execute_async_script(script) == [2, 3, 1, None]


def test_the_tabs_are_reached_by_keys(browser: Any, server: Live) -> None:
    opened(browser, server)
    tab = browser.find_element("id", "tab-chat")
    tab.send_keys(Keys.ARROW_RIGHT)
    assert browser.find_element("id", "view-compare").is_displayed()
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.find_element("id", "view-server").is_displayed()
    assert browser.switch_to.active_element.get_attribute("id") == "tab-server"


@pytest.mark.parametrize(("tab", "theme"), [("#chat", "light"), ("#compare", "dark"), ("#server", "light")])
def test_it_fits_a_phone(browser: Any, server: Live, tab: str, theme: str) -> None:
    opened(browser, server, width=360, theme=theme, tab=tab)
    browser.find_element("id", "settings-button").click()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
