"""The report in Chromium: it works, asks the network for nothing, and fits a phone and a sheet of paper."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chromium import asked_for, chromium, needs_chromium, show
from tests.unit.frontier.test_report import SAMPLE, with_harmful_names

from thrifty.frontier.report import report

needs_chromium()

pytestmark = pytest.mark.long

POSITION = """
const chart = Chart.getChart("canvas"), box = document.getElementById("canvas").getBoundingClientRect();
const { data } = chart.data.datasets[0], at = data.findIndex(({ index }) => index === arguments[0]);
const { x, y } = chart.getDatasetMeta(0).data[at];
return [box.left + x, box.top + y];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report.render(json.loads(SAMPLE.read_text(encoding="utf-8"))), encoding="utf-8")
    return path


def opened(browser: Any, page: Path, width: int = 1280, theme: str = "light") -> Any:
    return show(browser, page.as_uri(), width, theme)


def requests(browser: Any, page: Path) -> list[str]:
    """What the page asked for, itself included."""
    return [url for by, url in asked_for(browser) if by == page.as_uri()]


def card(browser: Any) -> str:
    return browser.find_element("id", "card").text


def test_it_logs_nothing_and_requests_only_itself(browser: Any, page: Path) -> None:
    browser.get_log("performance")
    opened(browser, page)
    assert browser.get_log("browser") == []
    assert requests(browser, page) == [page.as_uri()]
    assert browser.execute_script("return Chart.getChart('canvas').data.datasets[0].data.length") > 15


def test_pointing_at_a_circle_shows_its_recipe(browser: Any, page: Path) -> None:
    opened(browser, page)
    assert card(browser).startswith("kivi(bits=4)\nwinner")
    browser.execute_script("document.getElementById('plot').scrollIntoView({block: 'center'})")
    x, y = browser.execute_script(POSITION, 6)
    move = {"type": "mouseMoved", "x": x, "y": y}
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", move)
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    shown = card(browser)
    assert shown.startswith("snapkv(capacity=832) + kivi(bits=4)")
    assert "125.5 MB" in shown and "94.9%" in shown and "0.0127 nats" in shown and "150 tokens/s" in shown


def test_keys_move_from_recipe_to_recipe(browser: Any, page: Path) -> None:
    plot = opened(browser, page).find_element("id", "plot")
    plot.send_keys("\ue014")  # right
    following = card(browser).splitlines()[0]
    assert following != "kivi(bits=4)"
    plot.send_keys("\ue012")  # left
    assert card(browser).startswith("kivi(bits=4)\n")
    plot.send_keys("\ue012" * 40)
    assert "111.9 MB" in card(browser) and "predicted" in card(browser)
    plot.send_keys("\ue011")  # home
    assert card(browser).startswith("kivi(bits=4)\nwinner")


def test_the_axis_switches_and_rows_off_the_grid_stay_apart(browser: Any, page: Path) -> None:
    opened(browser, page)
    kinds = "return Chart.getChart('canvas').data.datasets[0].data.map(({ index }) => index)"
    assert not {22, 23, 24} & set(browser.execute_script(kinds))
    browser.find_element("css selector", "input[name=all]").click()
    assert {22, 23, 24} <= set(browser.execute_script(kinds))
    browser.execute_script("document.querySelector('input[value=kl]').click()")
    scale = browser.execute_script("const { y } = Chart.getChart('canvas').scales; return [y.type, y.options.reverse]")
    assert scale == ["logarithmic", True]


def test_the_table_sorts_both_ways_with_missing_values_last(browser: Any, page: Path) -> None:
    opened(browser, page)
    head = browser.find_elements("css selector", "table.recipes thead th")[2]
    column = (
        "return [...document.querySelector('table.recipes').tBodies[0].rows].map((row) => row.cells[2].dataset.sort)"
    )
    for order in ("descending", "ascending"):
        head.find_element("tag name", "button").click()
        values = browser.execute_script(column)
        known = [float(value) for value in values if value]
        assert head.get_attribute("aria-sort") == order
        assert known == sorted(known, reverse=order == "descending") and len(known) == 9
        assert all(value == "" for value in values[len(known) :])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Any, page: Path, theme: str) -> None:
    opened(browser, page, width=390, theme=theme)
    wide = """
    const inner = [...document.querySelectorAll("main *")].filter((one) => one.getBoundingClientRect().right > 391
      && !one.closest(".skip"));
    return [document.documentElement.scrollWidth, inner.map((one) => one.tagName + "." + one.className)];
    """
    assert browser.execute_script(wide) == [390, []]
    paper = browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    assert paper == {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 23, 26)"}[theme]


def test_text_can_be_read_in_both_themes(browser: Any, page: Path) -> None:
    names = ["ink", "quiet", "winner", "frontier", "alert"]
    script = """
    const style = getComputedStyle(document.documentElement);
    return arguments[0].map((name) => style.getPropertyValue(`--${name}`).trim());
    """
    for theme in ("light", "dark"):
        opened(browser, page, theme=theme)
        paper, soft, *texts = browser.execute_script(script, ["paper", "winner-soft", *names])
        for name, color in zip(names, texts, strict=True):
            assert contrast(color, paper) >= 4.5, (theme, name)
            assert contrast(color, soft) >= 4.5 or name not in ("ink", "winner", "quiet"), (theme, name)


def contrast(one: str, other: str) -> float:
    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_paper_gets_the_static_plot_and_whole_tables(browser: Any, page: Path) -> None:
    opened(browser, page, width=700, theme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    seen = """
    const shown = (name) => getComputedStyle(document.querySelector(name)).display !== "none";
    return [shown(".static"), shown("canvas"), shown("#controls"), getComputedStyle(document.body).color,
      document.documentElement.scrollWidth - document.documentElement.clientWidth];
    """
    assert browser.execute_script(seen) == [True, False, False, "rgb(27, 33, 38)", 0]


def test_without_javascript_the_plot_and_the_table_are_there(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(browser, page)
        assert browser.find_element("css selector", "svg.static").is_displayed()
        assert len(browser.find_elements("css selector", "svg.static circle")) > 15
        assert "99.2%" in card(browser)
        assert not browser.find_element("id", "controls").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_hostile_text_does_no_harm(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "hostile.html"
    document = with_harmful_names(json.loads(SAMPLE.read_text(encoding="utf-8")))
    page.write_text(report.render(document), encoding="utf-8")
    browser.get_log("performance"), browser.get_log("browser")
    opened(browser, page)
    browser.find_element("id", "plot").send_keys("\ue014")
    assert browser.execute_script("return window.harm") is None
    assert browser.get_log("browser") == [] and requests(browser, page) == [page.as_uri()]
    assert "<img src=x" in card(browser)


def test_the_command_is_copied(browser: Any, page: Path) -> None:
    opened(browser, page)
    button = browser.find_element("id", "copy")
    button.click()
    browser.execute_async_script("setTimeout(arguments[0], 200)")
    assert button.text in ("Copied", "Selected")
    assert "thrifty fit smollm2-135m --memory 150MB" in browser.find_element("id", "command").text
