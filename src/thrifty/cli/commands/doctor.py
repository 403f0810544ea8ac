"""`thrifty doctor`: what this machine can do, what runs native, and what is missing."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from thrifty import extras
from thrifty.cli.shared import opening, options, output

EXAMPLE = "thrifty doctor"
EXTRAS = {  # what a command of today needs beside the package's own requirements
    "torch": ("torch",),
    "eval": ("lm_eval", "datasets"),
    "serve": ("fastapi", "uvicorn", "uvloop", "httptools", "prometheus_client", "llguidance"),
    "cluster": ("ray",),
    "otel": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
}
USES = {
    "torch": "--reference, training, calibrated weights",
    "eval": "lm-eval's tasks",
    "serve": "thrifty serve, answers of a given form",
    "cluster": "thrifty serve --cluster",
    "otel": "thrifty serve --traces",
}


def command(recipe: options.RecipePath = None, threads: options.Threads = None, as_json: options.Json = False) -> None:
    """Check the machine: CPU features, kernels in use and why, measured speeds, what is missing and how to
    get it.

    With --recipe, also check that its techniques and options exist here.
    """
    document = _machine() | _kernels(threads) | {"missing": _missing()}
    if recipe is not None:
        chosen = opening.read_recipe(recipe)
        document["recipe"] = {"name": chosen.label(), "techniques": _techniques(chosen)}
    if as_json:
        output.json_line(document)
    else:
        _show(document)


def _machine() -> dict[str, Any]:
    import psutil

    import thrifty
    from thrifty.evaluation.roofline.machine import cores, cpu_name

    return {
        "thrifty": thrifty.__version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _version(package: str) -> str | None:
    """What is installed of an optional package, without importing it."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _kernels(threads: int | None) -> dict[str, Any]:
    from thrifty.evaluation.roofline import roofline
    from thrifty.kernels import dispatch

    native = dispatch.native()
    with output.waiting("measuring memory bandwidth and matrix products"):
        bandwidth, bandwidth_by = roofline.read_bandwidth(threads)
        gemm, gemm_by = roofline.gemm_rate()
    return {
        "kernels": "native" if native is not None else "reference",
        "reason": _reason(native),
        "isa": native.isa() if native is not None else None,
        "cpu_features": dict(native.cpu_features()) if native is not None else {},
        "bandwidth_gb_s": round(bandwidth, 1),
        "bandwidth_measured_by": bandwidth_by,
        "gemm_gflop_s": round(gemm, 1),
        "gemm_measured_by": gemm_by,
    }


def _reason(native: Any) -> str:
    if native is not None:
        return f"the native extension is built and this CPU runs its {native.isa()} kernels"
    if os.environ.get("THRIFTY_NATIVE") == "0":
        return "THRIFTY_NATIVE=0 turns the native extension off"
    return "the native extension is not built, or this machine cannot load it"


def _missing() -> list[dict[str, str]]:
    from thrifty.kernels import dispatch

    missing = []
    if dispatch.native() is None:
        get = "install a C++20 compiler and CMake, then `pip install --editable .` in the source tree"
        missing.append({"what": "native kernels (without them only --reference runs)", "get": get})
    for extra, modules in EXTRAS.items():
        lacking = [name for name in modules if not extras.is_there(name)]
        if lacking:
            get = f"pip install 'thrifty-engine[{extra}]'"
            missing.append({"what": f"{', '.join(lacking)} (extra '{extra}': {USES[extra]})", "get": get})
    return missing


def _techniques(recipe: Any) -> list[dict[str, str]]:
    from thrifty import registry

    return [
        {"stage": stage, "technique": table["technique"]}
        for stage in registry.STAGES
        for table in getattr(recipe, stage)
    ]


def _show(document: dict[str, Any]) -> None:
    features = ", ".join(name for name, present in document["cpu_features"].items() if present)
    torch = f"torch {document['torch']}" if document["torch"] else "without torch"
    rows = [
        (
            "Thrifty",
            f"{document['thrifty']} on Python {document['python']}, {torch}",
        ),
        ("machine", f"{document['cpu']}, {document['cores']} cores, {document['memory_bytes'] / 1e9:.0f} GB"),
        ("CPU features", features or "unknown without the native extension"),
        ("kernels", f"{document['kernels']}: {document['reason']}"),
        (
            "memory reads",
            f"{document['bandwidth_gb_s']} GB/s (measured by {document['bandwidth_measured_by']})",
        ),
        ("matrix products", f"{document['gemm_gflop_s']} {_gemm_unit(document)} ({document['gemm_measured_by']})"),
    ]
    if "recipe" in document:
        rows.append(("recipe", f"{document['recipe']['name']}: every technique and option is known"))
    rows += [("missing", f"{item['what']}: {item['get']}") for item in document["missing"]]
    output.card("", rows)
    sys.stdout.flush()


def _gemm_unit(document: dict[str, Any]) -> str:
    return "GOP/s, int4 by int8" if document["gemm_measured_by"] == "native" else "GFLOP/s in fp32"
