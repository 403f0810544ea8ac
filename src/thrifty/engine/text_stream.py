"""The text of one answer, piece by piece, as an object that ends its request when it is left."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from thrifty.engine.request import Handle


class TextStream(Iterator[str]):
    """Pieces of text as they become certain. It owns its request: closed, dropped (begun or not) or left by an error,
    the request ends and its memory is free. `handle` is there for the rest: samples, usage, cancel.
    """

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self._pieces = handle.text()

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the request, where it still runs. There are no more pieces."""
        self._pieces = iter(())
        self.handle.cancel()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_pieces"):
            self.handle.abandon()
