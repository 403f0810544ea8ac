"""A server as a program of its own, over a slow tiny model. Arguments: seconds to drain, milliseconds a step, port (0),
memory (64MB).
"""

from __future__ import annotations

import logging
import sys

from tests.unit.serving.live import NAME, SlowEngine, tiny_engine

from thrifty.engine.engine import Engine
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.run import serve
from thrifty.serving.served_model import Fits, ModelSource
from thrifty.serving.settings import ServerSettings


def main() -> None:
    """Serve; the first line of the output is the URL."""
    logging.basicConfig(level=logging.INFO)
    drain, pause = float(sys.argv[1]), float(sys.argv[2]) / 1000
    port, memory = [*sys.argv[3:], *("0", "64MB")[len(sys.argv) - 3 :]]
    settings = ServerSettings(port=int(port), drain_seconds=drain)

    def opened(fits: Fits) -> Engine:
        engine = tiny_engine(SlowEngine, memory=memory)
        engine.pause = pause  # type: ignore[attr-defined]
        return engine

    serve(ModelShelf(settings, [ModelSource(NAME, opened)], preload=True), lambda url: print(url, flush=True))


if __name__ == "__main__":
    main()
