"""`thrifty serve`: an OpenAI-compatible server."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.shared import opening, options, output, serve_options
from thrifty.cli.shared.replicas import replicas_asked
from thrifty.cli.shared.served_models import served_adapters, served_models

CLUSTER = "Cluster"

EXAMPLE = "thrifty serve smollm2-135m --memory 300MB --port 8000"


def command(
    model: serve_options.OneModel = None,
    models: serve_options.Models = None,
    recipe: options.RecipePath = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option("--api-key", envvar="THRIFTY_API_KEY", help="Clients must show it; repeat for several."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Serve an address that others reach without any key.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name that clients ask for. Default: MODEL.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Most tokens of a prompt and its answer.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Most sequences at a time.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Most requests that wait; more are refused with 429.")] = 64,
    adapters: serve_options.Adapters = None,
    adapters_from: serve_options.AdaptersFrom = None,
    prefill_slice: serve_options.PrefillSlice = serve_options.PREFILL_SLICE,
    model_room: serve_options.ModelRoom = 64_000_000,
    request_recipes: serve_options.RequestRecipes = True,
    request_techniques: serve_options.RequestTechniques = None,
    request_cache_memory: serve_options.RequestCacheMemory = None,
    drafts: serve_options.Drafts = None,
    priority: serve_options.Priority = 0,
    key_requests: serve_options.KeyRequests = None,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that answers under way get to end when the server is told to stop.")
    ] = 30.0,
    traces: serve_options.Traces = False,
    conversation_disk: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Disk for prompts that cache techniques compress, to go on from; 0: none."),
    ] = "1GB",
    session_bytes: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory and disk together for sessions of conversations.")
    ] = "1GB",
    session_folder: Annotated[
        Path | None, typer.Option(help="Where clients may save their sessions. Default: nowhere.")
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Serve by several replicas behind one address, on Ray.")
    ] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=CLUSTER, help="Replicas; --threads are of each. Default: 2.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=CLUSTER, help="As many as the load may bring.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CLUSTER, help="HOST:PORT of a Ray cluster, or auto. Default: one on this machine."
        ),
    ] = None,
    memory: options.Memory = None,
    process_memory: options.ProcessMemory = None,
    threads: options.Threads = None,
    native: options.Native = None,
    no_copy: options.NoCopy = False,
    as_json: options.Json = False,
) -> None:
    """Serve a model by OpenAI's API and Anthropic's, or several (--model), with a page to try it at /.

    With --json the address is one line of JSON on standard output, once the server listens.
    """
    from thrifty import extras

    for module in ("fastapi", "uvicorn", "prometheus_client", "llguidance"):
        extras.require(module, "serve", "thrifty serve")
    from thrifty.api import open_engine
    from thrifty.engine.engine import Engine
    from thrifty.serving.model_shelf import ModelShelf
    from thrifty.serving.run import serve
    from thrifty.serving.served_model import Fits, ModelSource
    from thrifty.serving.settings import ServerSettings

    replicated = replicas_asked(
        cluster, replicas, max_replicas, ray_address,
        threads=threads, memory=process_memory or memory, batch=batch, queue=queue,
    )  # fmt: skip
    if replicated is not None:
        if adapters_from is not None:
            raise typer.BadParameter("--adapters-from lets a request load adapters, into one of several replicas only")
        threads = replicated.threads
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    chosen = opening.read_recipe(recipe)
    served = served_models(model, models or [], name)
    if ray_address is None:  # else they lie on the machines of the cluster
        opening.check_names([*served.values(), *(drafts or ())])
    added = served_adapters(adapters or [], served)
    several = model is None
    if several and process_memory is not None:
        raise typer.BadParameter("--process-memory bounds one model; give --memory for several")
    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        public=public,
        model_room=model_room,
        adapter_folder=adapters_from,
        request_recipes=request_recipes,
        traces=traces,
        session_folder=session_folder,
        request_techniques=serve_options.technique_names(request_techniques),
        request_cache_memory=request_cache_memory,
        priority=priority,
        key_requests=key_requests,
        drain_seconds=drain,
    )

    def source(known_as: str, path: str) -> ModelSource:
        def opened(fits: Fits) -> Engine:
            return open_engine(
                path, chosen, memory=memory, process_memory=process_memory, threads=threads, context=context,
                native=native, copy=not no_copy, batch=batch, queue=queue, drafts=drafts or (),
                prefill_slice_ms=prefill_slice,
                fits=fits if several else None,
                conversation_disk=None if conversation_disk == "0" else conversation_disk, session_bytes=session_bytes,
            )  # fmt: skip

        return ModelSource(known_as, opened, added[known_as])

    def shelf() -> ModelShelf:
        sources = [source(known_as, path) for known_as, path in served.items()]
        return ModelShelf(settings, sources, memory=memory if several else None, preload=not several)

    def listening(url: str) -> None:
        names = ", ".join(served)
        if as_json:
            output.json_line({"model": names, "url": f"{url}/v1"})
        else:
            output.note(f"{names} at {url}/v1 (Ctrl-C ends)")

    if replicated is None:
        return serve(shelf(), listening)
    from thrifty.serving.cluster.run import serve_cluster

    return serve_cluster(", ".join(served), settings, replicated, shelf, listening)
