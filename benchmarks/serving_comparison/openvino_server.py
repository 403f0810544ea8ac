"""OpenVINO GenAI's continuous batching behind the one endpoint that the load needs.

    python -m benchmarks.serving_comparison.openvino_server FILE PORT THREADS CHATS CONTEXT

The pipeline reads OpenVINO's own form of a model, which GenAI makes of the GGUF file first. One thread steps the
pipeline; each connection has a thread that waits for its tokens. Greedy, without end tokens, with prefix caching.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openvino_genai as genai

BLOCK = 32  # tokens of a block of its cache on the CPU


def pipeline(file: Path, folder: Path, threads: int, chats: int, context: int) -> Any:
    """The pipeline, with a cache for so many chats and as much again for shared beginnings."""
    copy = folder / "model.gguf"
    shutil.copyfile(file, copy)
    properties = {"INFERENCE_NUM_THREADS": threads}
    genai.LLMPipeline(str(copy), "CPU", enable_save_ov_model=True, **properties)
    copy.unlink()
    config = genai.SchedulerConfig()
    config.enable_prefix_caching = True
    config.num_kv_blocks = 2 * chats * (context // BLOCK + 1)
    config.max_num_seqs = chats
    return genai.ContinuousBatchingPipeline(str(folder), config, "CPU", properties)


class Batching:
    """Steps the pipeline while there are requests."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.tokenizer = pipe.get_tokenizer()
        self.changed = threading.Condition()
        self._number = 0
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, text: str, tokens: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.do_sample, config.ignore_eos = False, True
        with self.changed:
            self._number += 1
            handle = self.pipe.add_request(self._number, text, config)
            self.changed.notify_all()
        return handle

    def _run(self) -> None:
        while True:
            with self.changed:
                while not self.pipe.has_non_finished_requests():
                    self.changed.wait()
            self.pipe.step()
            with self.changed:
                self.changed.notify_all()


def handler(batching: Batching) -> type[BaseHTTPRequestHandler]:
    """Answers chats, streamed."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = batching.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)
            handle = batching.submit(text, body["max_tokens"])
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            read, count = batching.tokenizer.encode(text).input_ids.shape[1], 0
            while count < body["max_tokens"]:
                with batching.changed:
                    while not handle.can_read():
                        batching.changed.wait(1.0)
                for output in handle.read().values():
                    count += len(output.generated_ids)
                    piece = batching.tokenizer.decode(output.generated_ids) or " "
                    self.chunk({"choices": [{"index": 0, "delta": {"content": piece}}]})
            self.chunk({"choices": [], "usage": {"prompt_tokens": read, "completion_tokens": count}})
            self.wfile.write(b"data: [DONE]\n\n")

        def chunk(self, content: dict[str, Any]) -> None:
            self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


def main() -> None:
    file, port, threads, chats, context = Path(sys.argv[1]), *map(int, sys.argv[2:6])
    with tempfile.TemporaryDirectory() as folder:
        batching = Batching(pipeline(file, Path(folder), threads, chats, context))
        ThreadingHTTPServer(("127.0.0.1", port), handler(batching)).serve_forever()


if __name__ == "__main__":
    main()
