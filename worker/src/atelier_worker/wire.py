"""Lines in, lines out, and how long one may be. The only module that touches the pipes.

It never interprets a message: `loop.py` does. A line that is too long, is not UTF-8, is not JSON or
is no message that we know is refused, logged and counted; enough of them in a row are the sign that
the other side is not what we think it is.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

import msgspec

from .messages import MAX_BAD_LINES, MAX_LINE_BYTES, PROTOCOL, FromWorker, Limits, ToWorker

log = logging.getLogger(__name__)

READ_BYTES = 1 << 16


class TooManyBadLines(Exception):
    """As many unreadable lines in a row as the orchestrator allows."""


class OtherProtocol(Exception):
    """A `welcome` with another protocol number, whatever else it holds."""


class _Envelope(msgspec.Struct):
    """What a `welcome` of any protocol has."""

    type: str
    protocol: int


def refuse_another_protocol(line: bytes) -> None:
    """Raises `OtherProtocol` for a welcome whose other fields we may not even know."""
    try:
        envelope = msgspec.json.decode(line, type=_Envelope)
    except msgspec.ValidationError:
        return
    if envelope.type == "welcome" and envelope.protocol != PROTOCOL:
        raise OtherProtocol(envelope.protocol)


class LineReader:
    """Messages from a descriptor. Iteration ends with the end of the file."""

    def __init__(self, descriptor: int) -> None:
        self.limits = Limits(line_bytes=MAX_LINE_BYTES, bad_lines=MAX_BAD_LINES)
        self.refused = 0
        self._bad_in_a_row = 0
        self._descriptor = descriptor
        self._decoder: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)

    def __iter__(self) -> Iterator[ToWorker]:
        for line in self._lines():
            try:
                if line is None:
                    raise msgspec.DecodeError("longer than a line may be")
                message = self._decode(line)
            except (UnicodeDecodeError, msgspec.DecodeError) as problem:
                self._refuse(str(problem))
            else:
                self._bad_in_a_row = 0
                yield message

    def _lines(self) -> Iterator[bytes | None]:
        """Lines without their newline; None for one that was too long, of which nothing is kept."""
        held = bytearray()
        skipping = False
        while chunk := os.read(self._descriptor, READ_BYTES):
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                if skipping or len(held) + len(end) > self.limits.line_bytes:
                    yield None
                else:
                    yield bytes(held + end)
                held.clear()
                skipping = False
            held += rest
            if len(held) > self.limits.line_bytes:
                skipping = True
            if skipping:
                held.clear()

    def _decode(self, line: bytes) -> ToWorker:
        try:
            line.decode()  # the decoder itself looks only into strings
            return self._decoder.decode(line)
        except msgspec.ValidationError:
            refuse_another_protocol(line)
            raise

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        self._bad_in_a_row += 1
        # The reason and never the line itself: it may hold somebody's prompt.
        log.warning("refused a line (%d so far): %s", self.refused, reason)
        if self._bad_in_a_row >= self.limits.bad_lines:
            raise TooManyBadLines(f"{self._bad_in_a_row} bad lines in a row")


class LineWriter:
    """Messages to a descriptor, whole lines at a time, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()

    def send(self, message: FromWorker) -> None:
        """Write one line. Ends the thread when the orchestrator is gone: nobody is left to hear."""
        line = self._encoder.encode(message)
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"a {type(message).__name__} of {len(line)} bytes does not fit a line")
        rest = memoryview(line + b"\n")
        try:
            with self._lock:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
        except BrokenPipeError:
            raise SystemExit(0) from None
