"""A cluster as a program, over a slow tiny model. Arguments: ClusterSettings as JSON, milliseconds a step."""

from __future__ import annotations

import functools
import json
import logging
import sys

from tests.unit.serving.live import NAME, SlowEngine, tiny_engine

from thrifty.engine.engine import Engine
from thrifty.serving.cluster.run import serve_cluster
from thrifty.serving.cluster.settings import ClusterSettings
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.served_model import Fits, ModelSource
from thrifty.serving.settings import ServerSettings


def slow_shelf(settings: ServerSettings, pause: float) -> ModelShelf:
    """What every replica serves. pause: seconds that each step takes more."""

    def opened(fits: Fits) -> Engine:
        engine = tiny_engine(SlowEngine, batch=4, queue=8)
        engine.pause = pause  # type: ignore[attr-defined]
        return engine

    return ModelShelf(settings, [ModelSource(NAME, opened)], preload=True)


def main() -> None:
    """Serve; the first line of the output is the URL."""
    logging.basicConfig(level=logging.INFO)
    cluster = ClusterSettings(**{"batch": 4, "queue": 8, **json.loads(sys.argv[1])})
    settings = ServerSettings(port=0, drain_seconds=10, keep_alive_seconds=0.5)
    shelf = functools.partial(slow_shelf, settings, float(sys.argv[2]) / 1000)
    serve_cluster(NAME, settings, cluster, shelf, lambda url: print(url, flush=True))


if __name__ == "__main__":
    from tests.unit.serving.cluster import cluster_program

    cluster_program.main()
