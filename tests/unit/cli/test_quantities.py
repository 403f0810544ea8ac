"""Sizes, lists and pairs as people type them, and what they are told where they mistype."""

from __future__ import annotations

import pytest
import typer

from thrifty.cli.shared.quantities import parse_bias, parse_bytes, parse_counts, parse_seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("150MB", 150_000_000), ("1.5GB", 1_500_000_000), ("512 MiB", 512 << 20), ("4g", 4 * 10**9), ("1000", 1000)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "150 apples", "-5MB", "0", "0GB", "1e3MB", "nan", "inf", "1.2.3MB"])
def test_a_bad_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"not a size.*'150MB'|not positive; give at least 1 byte"):
        parse_bytes(text)


def test_an_absurd_size_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="more than any machine has"):
        parse_bytes("99999999999TB")


def test_counts_are_sorted_and_distinct() -> None:
    assert parse_counts("2048, 128,2048") == (128, 2048)


@pytest.mark.parametrize("text", ["", "0", "-1", "12,x", "1.5", "1,,2", "99999999999"])
def test_a_bad_count_is_named(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a positive whole number. Write e.g. 128,2048,6144"):
        parse_counts(text)


def test_a_bias() -> None:
    assert parse_bias("198=-5") == (198, -5.0)
    assert parse_bias("7=-inf") == (7, float("-inf"))


@pytest.mark.parametrize("text", ["198", "x=1", "1=y", "="])
def test_a_bad_bias_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not TOKEN=BIAS. Write e.g. 198=-5"):
        parse_bias(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("8ms", 0.008), ("0.5s", 0.5), (" 800 us ", 0.0008), (".25 s", 0.25), (2.0, 2.0)]
)
def test_times(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["8", "ms", "-8ms", "0ms", "8 min", "1e3ms", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a time. Write e.g. 8ms"):
        parse_seconds(text)
