"""`thrifty serve`: an OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from thrifty import extras
from thrifty.cli.shared import opening, options, output, serve_options
from thrifty.cli.shared.ladder import ladder_asked
from thrifty.cli.shared.replicas import replicas_asked
from thrifty.cli.shared.served_models import ServedModels, served_adapters, served_models
from thrifty.decoding.draft_names import own_draft

if TYPE_CHECKING:
    from thrifty.serving.cluster.settings import ClusterSettings
    from thrifty.serving.settings import ServerSettings

EXAMPLE = "thrifty serve smollm2-135m --memory 300MB --port 8000"


def command(
    model: serve_options.OneModel = None,
    recipe: options.RecipePath = None,
    memory: options.Memory = None,
    process_memory: options.ProcessMemory = None,
    threads: options.Threads = None,
    native: options.Native = None,
    no_copy: options.NoCopy = False,
    as_json: options.Json = False,
    host: serve_options.Host = "127.0.0.1",
    port: serve_options.Port = 8000,
    api_keys: serve_options.ApiKeys = None,
    public: serve_options.Public = False,
    name: serve_options.Name = None,
    context: serve_options.Context = None,
    batch: serve_options.Batch = 16,
    queue: serve_options.Queue = 64,
    prefill_slice: serve_options.PrefillSlice = serve_options.PREFILL_SLICE,
    drain: serve_options.Drain = 30.0,
    traces: serve_options.Traces = False,
    models: serve_options.Models = None,
    model_room: serve_options.ModelRoom = 64_000_000,
    adapters: serve_options.Adapters = None,
    adapters_from: serve_options.AdaptersFrom = None,
    request_recipes: serve_options.RequestRecipes = True,
    request_techniques: serve_options.RequestTechniques = None,
    request_cache_memory: serve_options.RequestCacheMemory = None,
    drafts: serve_options.Drafts = None,
    priority: serve_options.Priority = 0,
    key_requests: serve_options.KeyRequests = None,
    conversation_disk: serve_options.ConversationDisk = serve_options.GIGABYTE,
    session_bytes: serve_options.SessionBytes = serve_options.GIGABYTE,
    session_folder: serve_options.SessionFolder = None,
    tighten: serve_options.Tighten = None,
    tighten_limit: serve_options.TightenLimit = None,
    tighten_below: serve_options.TightenBelow = None,
    tighten_wait: serve_options.TightenWait = None,
    cluster: serve_options.Cluster = False,
    replicas: serve_options.Replicas = None,
    max_replicas: serve_options.MaxReplicas = None,
    ray_address: serve_options.RayAddress = None,
) -> None:
    """Serve a model by OpenAI's API and Anthropic's, or several (--model), with a page to try it at /.

    With --json the address is one line of JSON on standard output, once the server listens.
    """
    _prepare()
    from thrifty.serving.settings import ServerSettings

    replicated = replicas_asked(
        cluster, replicas, max_replicas, ray_address,
        threads=threads, memory=process_memory or memory, batch=batch, queue=queue,
    )  # fmt: skip
    _check(replicated, adapters_from, model, process_memory)
    settings = ServerSettings(
        host=host, port=port, api_keys=tuple(api_keys or ()), public=public, traces=traces, drain_seconds=drain,
        model_room=model_room, adapter_folder=adapters_from, session_folder=session_folder,
        request_recipes=request_recipes, request_techniques=serve_options.technique_names(request_techniques),
        request_cache_memory=request_cache_memory, priority=priority, key_requests=key_requests,
        tighten=ladder_asked(
            tighten, tighten_limit, tighten_below, tighten_wait, bounded=(memory or process_memory) is not None
        ),
    )  # fmt: skip
    engine = {
        "memory": memory, "process_memory": process_memory, "context": context, "native": native,
        "threads": threads if replicated is None else replicated.threads, "copy": not no_copy, "batch": batch,
        "queue": queue, "prefill_slice_ms": prefill_slice, "drafts": drafts or (),
        "conversation_disk": conversation_disk or None, "session_bytes": session_bytes,
    }  # fmt: skip
    served = served_models(model, models or [], name)
    if ray_address is None:  # else they lie on the machines of the cluster
        opening.check_names([*served.values(), *(name for name in drafts or () if own_draft(name) is None)])
    added = served_adapters(adapters or [], served)
    shelf = ServedModels(settings, served, added, opening.read_recipe(recipe), engine, several=model is None)
    _serve(shelf, settings, replicated, ", ".join(served), as_json)


def _prepare() -> None:
    """Raise MissingExtra where the server's packages are not installed; let it say what it does."""
    import logging
    import sys

    loop = () if sys.platform == "win32" else ("uvloop",)
    for module in ("fastapi", "uvicorn", *loop, "prometheus_client", "llguidance"):
        extras.require(module, "serve", "thrifty serve")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


def _check(
    replicated: ClusterSettings | None, adapters_from: Path | None, model: str | None, process_memory: int | None
) -> None:
    """Raise typer.BadParameter for options that do not go together."""
    if replicated is not None and adapters_from is not None:
        raise typer.BadParameter("--adapters-from lets a request load adapters, into one of several replicas only")
    if model is None and process_memory is not None:
        raise typer.BadParameter("--process-memory bounds one model; give --memory for several")


def _serve(
    shelf: ServedModels, settings: ServerSettings, replicated: ClusterSettings | None, names: str, as_json: bool
) -> None:
    """Until it is told to stop."""

    def listening(url: str) -> None:
        if as_json:
            output.json_line({"model": names, "url": f"{url}/v1"})
        else:
            output.note(f"{names} at {url}/v1 (Ctrl-C ends)")

    if replicated is None:
        from thrifty.serving.run import serve

        return serve(shelf.made(), listening)
    from thrifty.serving.cluster.run import serve_cluster

    return serve_cluster(names, settings, replicated, shelf.made, listening)
