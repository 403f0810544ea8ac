"""The table for people."""

from __future__ import annotations

from typing import Any


def show(found: dict[str, Any]) -> None:
    """Print results, ratios and roofline of a document (see `figures.document`)."""
    state = ", NOISY" if found["noisy"] else ""
    print(f"{found['model']}, {found['threads']} threads, memory reads at {found['bandwidth_gb_s']} GB/s{state}")
    columns = f"{'context':>8}{'prefill':>10}{'decode':>9}{'peak MB':>9}{'first s':>9}{'KL':>9}{'rounds':>8}"
    print(f"{'engine':<14}{'variant':<28}{columns}")
    for row in found["results"]:
        context = f"{row['context']}" if row["batch"] == 1 else f"{row['context']}x{row['batch']}"
        values = f"{_text(row['prefill_tok_s'], '.0f'):>10}{_text(row['decode_tok_s'], '.1f'):>9}"
        values += f"{_text(row['peak_rss_mb'], '.0f'):>9}{_text(row['first_token_s'], '.2f'):>9}"
        print(
            f"{row['engine']:<14}{row['variant']:<28}{context:>8}{values}{_text(row['kl'], '.4f'):>9}{row['rounds']:>8}"
        )
    print("Thrifty over the best peer (medians):")
    for name, ratio in found["ratios"].items():
        print(f"  {name:<22}{_text(ratio, '.2f'):>8}   {found['best_peers'][name] or 'not measured'}")
    for name, fraction in found["roofline"].items():
        print(f"  {name:<22}{_text(fraction, '.0%'):>8}   of the roofline")
    for name, error in found["errors"].items():
        print(f"failed: {name}: {error}")


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
