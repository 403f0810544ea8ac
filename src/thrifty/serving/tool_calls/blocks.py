"""An answer as texts and calls in their order, as the APIs of responses and of messages have it."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.engine.answer import Event, Sample
from thrifty.serving.tool_calls.call_parser import Piece
from thrifty.serving.tool_calls.reading import CallReader


@dataclass
class Block:
    """A text, or a call. text: of a call its arguments, as JSON. name, identity: of a call; None, "" of a text."""

    text: str = ""
    name: str | None = None
    identity: str = ""


@dataclass(frozen=True)
class Addition:
    """More of an answer. place: the block's number. opened: whether the block is new. text: what it gets."""

    place: int
    opened: bool
    text: str


class Blocks:
    """The blocks of one sample, read from its events. reader: of its calls; None where it is text alone."""

    def __init__(self, reader: CallReader | None) -> None:
        self.reader = reader
        self.all: list[Block] = []

    def push(self, event: Event) -> list[Addition]:
        """What an event adds."""
        if self.reader is not None:
            return [self._add(piece, self.reader) for piece in self.reader.pieces(event)]
        if not event.text:
            return []
        opened = not self.all
        if opened:
            self.all.append(Block())  # its text is the sample's, set at the end
        return [Addition(0, opened, event.text)]

    def end(self, sample: Sample) -> list[Addition]:
        """What is left once the sample is over: the text of an answer without calls whose events were not read, and an
        empty text where nothing came, as clients expect one block at least.
        """
        missing = not self.all
        if self.reader is None:
            self.all = [Block(sample.text)]
        elif missing:
            self.all = [Block()]
        return [Addition(0, True, self.all[0].text)] if missing else []

    def reason(self, sample: Sample) -> str | None:
        """Why the sample ended: its own reason, or "tool_calls"."""
        reason = sample.finish_reason
        return reason if self.reader is None else self.reader.reason(reason)

    def is_cut(self, place: int) -> bool:
        """Whether a block is a call whose arguments are not whole."""
        last = place == len(self.all) - 1
        return last and self.all[place].name is not None and self.reader is not None and self.reader.unfinished

    def _add(self, piece: Piece, reader: CallReader) -> Addition:
        if piece.name is not None:
            self.all.append(Block("", piece.name, reader.identity(piece.call)))
            return Addition(len(self.all) - 1, True, "")
        if piece.call < 0:
            return self._add_text(piece.content)
        self.all[-1].text += piece.arguments
        return Addition(len(self.all) - 1, False, piece.arguments)

    def _add_text(self, text: str) -> Addition:
        opened = not self.all or self.all[-1].name is not None
        if opened:
            self.all.append(Block())
        self.all[-1].text += text
        return Addition(len(self.all) - 1, opened, text)
