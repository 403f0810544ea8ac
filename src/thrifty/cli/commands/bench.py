"""`thrifty bench`: how fast a model runs, and how far that is from what the memory could deliver."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from thrifty.cli.shared import opening, options, output
from thrifty.cli.shared.layout import Column
from thrifty.cli.shared.quantities import parse_counts

EXAMPLE = "thrifty bench smollm2-135m --recipe recipe.toml --contexts 128,2048,6144"
CONTEXTS = "128,2048,6144"


def command(
    model: options.ModelName,
    recipe: options.RecipePath = None,
    contexts: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", show_default=CONTEXTS, help="Prompt lengths in tokens to measure at."),
    ] = None,
    process_memory: options.ProcessMemory = None,
    threads: options.Threads = None,
    native: options.Native = None,
    no_copy: options.NoCopy = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where a token's time goes, by operation of the native plan.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Measure prefill and decode speed, bytes per token, the roofline and peak memory.

    The roofline is by the bytes that are read; beside it stands that of the checkpoint's own bytes.

    The last line is JSON; with --json it is the only one. Contexts that the model cannot hold are left out of
    the default list, and refused where you name them.
    """
    counts = parse_counts(contexts or CONTEXTS)
    chosen = opening.read_recipe(recipe)
    with opening.opened(
        model, recipe=chosen, process_memory=process_memory, threads=threads, native=native, copy=not no_copy
    ) as thrifty:
        limit = thrifty.engine.probe().context
        if contexts is None:
            counts = tuple(count for count in counts if count + STEPS < limit) or (max(1, limit // 2),)
        report = measured(thrifty.engine, counts, threads, as_json)
        profiles = _profiles(thrifty.engine, counts) if profile else {}
    document = {"model": model, "recipe": chosen.label(), **report, **profiles}
    if not as_json:
        _table(document)
        for context, shares in profiles.get("profile", {}).items():
            _profile_table(context, shares)
    output.json_line(document)


STEPS = 64  # tokens decoded at every context


def measured(engine: Any, contexts: tuple[int, ...], threads: int | None, quiet: bool) -> dict[str, Any]:
    """The report without the names of model and recipe, in the form that --json prints."""
    from thrifty.evaluation.measuring import memory, speed
    from thrifty.evaluation.measuring.noise import listening
    from thrifty.evaluation.roofline import roofline

    with output.waiting("measuring memory bandwidth"):
        bandwidth, _ = roofline.read_bandwidth(threads)
    weights = roofline.weight_bytes_per_token(engine.model)
    filed = roofline.file_bytes_per_token(engine.model)
    by_context = {}
    with memory.watch() as process, listening() as noise:
        speed.warm_up(engine)
        for context in contexts:
            with output.waiting(f"measuring at {context} tokens"):
                result = speed.measure(engine, context, steps=min(STEPS, max(1, engine.probe().context - context - 1)))
            roof = roofline.Roofline(weights + result.cache_bytes, bandwidth)
            by_context[str(context)] = {
                "prefill_tok_s": round(result.prefill_rate, 1),
                "decode_tok_s": round(result.decode_rate, 1),
                "bytes_per_token": roof.bytes_per_token,
                "roofline_fraction": round(roof.fraction(result.decode_rate), 3),
            }
            if filed is not None:
                least = roofline.Roofline(filed + result.cache_bytes, bandwidth)
                by_context[str(context)]["file_roofline_fraction"] = round(least.fraction(result.decode_rate), 3)
    return {
        "bandwidth_gb_s": round(bandwidth, 1),
        "weight_bytes_per_token": weights,
        "file_bytes_per_token": filed,
        "contexts": by_context,
        "peak_rss_mb": round(process.peak / 1e6, 1),
        "ledger_peak_mb": round(engine.usage().peak / 1e6, 1),
        "others_share": round(noise.others, 3),
    }


def _profiles(engine: Any, contexts: tuple[int, ...]) -> dict[str, Any]:
    """Microseconds a token by operation, and for decode the bytes that each must read, by context."""
    from thrifty.evaluation.measuring import profile

    by_context = {}
    for context in contexts:
        with output.waiting(f"profiling at {context} tokens"):
            result = profile.measure(engine, context, steps=min(STEPS, max(1, engine.probe().context - context - 1)))
        by_context[str(context)] = {
            part: {
                kind: {"us_per_token": round(share.microseconds, 2), "bytes": share.nbytes}
                for kind, share in shares.items()
            }
            for part, shares in (("prefill", result.prefill), ("decode", result.decode))
        }
    return {"profile": by_context}


def _profile_table(context: str, parts: dict[str, Any]) -> None:
    totals = {part: sum(share["us_per_token"] for share in shares.values()) for part, shares in parts.items()}
    rows = []
    for kind in dict.fromkeys([*parts["decode"], *parts["prefill"]]):
        cells = [kind]
        for part in ("decode", "prefill"):
            time = parts[part].get(kind, {"us_per_token": 0.0})["us_per_token"]
            cells += [f"{time:.1f}", f"{time / totals[part]:.0%}"]
        share = parts["decode"].get(kind, {"bytes": 0, "us_per_token": 0.0})
        rate = share["bytes"] / share["us_per_token"] / 1e3 if share["bytes"] else 0.0
        rows.append((*cells, f"{rate:.1f} GB/s" if rate else "-"))
    columns = (
        Column("operation", number=False),
        Column("decode µs", rank=1),
        Column("of it", rank=1),
        Column("prefill µs", rank=2),
        Column("of it", rank=2),
        Column("decode reads at", rank=3),
    )
    output.table(f"a token's time after {context} tokens", columns, rows)


def _table(document: dict[str, Any]) -> None:
    rows = [
        (
            context,
            f"{row['prefill_tok_s']:.1f}",
            f"{row['decode_tok_s']:.1f}",
            output.megabytes(row["bytes_per_token"]),
            f"{row['decode_tok_s'] / row['roofline_fraction']:.0f}" if row["roofline_fraction"] else "-",
            f"{row['roofline_fraction']:.0%}",
        )
        for context, row in document["contexts"].items()
    ]
    columns = (
        Column("context, tokens"),
        Column("prefill tok/s", rank=1),
        Column("decode tok/s", rank=1),
        Column("read per token", rank=2),
        Column("roofline tok/s", rank=3),
        Column("of the roofline", rank=2),
    )
    output.table(f"{document['model']}, {document['recipe']}", columns, rows)
    output.say(
        f"memory reads at {document['bandwidth_gb_s']} GB/s; at their peaks the ledger held "
        f"{document['ledger_peak_mb']} MB and the process {document['peak_rss_mb']} MB",
    )
    _say_file(document)
    from thrifty.evaluation.measuring.noise import DISTURBED

    if document["others_share"] > DISTURBED:
        output.warn(
            f"other work took {document['others_share']:.0%} of the processors meanwhile: these speeds are lower than "
            "this machine's own; end it and measure again"
        )


def _say_file(document: dict[str, Any]) -> None:
    """What a token reads of weights beside what the checkpoint holds of them."""
    filed = document.get("file_bytes_per_token")
    if not filed:
        return
    read = document["weight_bytes_per_token"]
    shares = [f"{row['file_roofline_fraction']:.0%} at {context}" for context, row in document["contexts"].items()]
    output.say(
        f"a token reads {output.megabytes(read)} of weights, {read / filed:.2f} of the {output.megabytes(filed)} that "
        f"the checkpoint holds of them; by these bytes decoding reaches {', '.join(shares)} of the roofline"
    )
