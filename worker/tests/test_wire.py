"""Lines in and out, over real pipes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from atelier_worker.messages import MAX_LINE_BYTES, Bye, Hello, Limits, ProbeDevices, Unload
from atelier_worker.wire import LineReader, LineWriter, OtherProtocol, TooManyBadLines

PROBE = b'{"type":"probe_devices","id":7}\n'


class Pipe:
    """Both ends of a pipe, each closed once."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self._open = {self.read_end, self.write_end}

    def close(self, end: int) -> None:
        if end in self._open:
            self._open.remove(end)
            os.close(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close(made.read_end)
    made.close(made.write_end)


@contextmanager
def feed(pipe: Pipe, data: bytes) -> Iterator[LineReader]:
    """A reader of exactly this data. Written by a thread, since a pipe holds only 64 KiB."""

    def write() -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(pipe.write_end, rest) :]
        pipe.close(pipe.write_end)

    thread = threading.Thread(target=write)
    thread.start()
    yield LineReader(pipe.read_end)
    thread.join()


def padded(size: int) -> bytes:
    """A valid line of exactly this many bytes."""
    line = msgspec.json.encode(Unload(1, ""))
    return line[:-2] + b"x" * (size - len(line)) + line[-2:]


def test_a_line_may_be_as_long_as_the_limit_and_not_a_byte_longer(pipe: Pipe) -> None:
    lines = padded(MAX_LINE_BYTES) + b"\n" + padded(MAX_LINE_BYTES + 1) + b"\n"
    with feed(pipe, lines) as reader:
        (message,) = reader
    assert isinstance(message, Unload)
    assert len(msgspec.json.encode(message)) == MAX_LINE_BYTES
    assert reader.refused == 1


def test_a_giant_line_is_one_bad_line_and_the_next_is_heard(pipe: Pipe) -> None:
    with feed(pipe, b"x" * (5 * MAX_LINE_BYTES) + b"\n" + PROBE) as reader:
        assert list(reader) == [ProbeDevices(7)]
    assert reader.refused == 1


def test_lines_may_arrive_in_pieces_and_several_at_once(pipe: Pipe) -> None:
    reader = LineReader(pipe.read_end)
    messages = iter(reader)
    os.write(
        pipe.write_end,
        b'{"type":"probe_devices","id":1}\n{"type":"probe_devices","id":2}\n{"type":"pro',
    )
    assert next(messages) == ProbeDevices(1)
    assert next(messages) == ProbeDevices(2)
    os.write(pipe.write_end, b'be_devices","id":3}\n')
    assert next(messages) == ProbeDevices(3)


def test_a_line_without_its_newline_is_no_line(pipe: Pipe) -> None:
    with feed(pipe, b'{"type":"shutdown"}') as reader:
        assert list(reader) == []


@pytest.mark.parametrize(
    "bad", [b"\xff\xfe", b"", b"no json", b'{"type":"explode"}', b'{"type":"unload","id":1}']
)
def test_a_bad_line_is_refused_and_the_next_is_heard(pipe: Pipe, bad: bytes) -> None:
    with feed(pipe, bad + b"\n" + PROBE) as reader:
        assert list(reader) == [ProbeDevices(7)]
    assert reader.refused == 1


def test_a_refused_line_is_not_repeated_in_the_log(
    pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    with feed(pipe, b'{"type":"unload","id":1,"model":"m","prompt":"my secret"}\n') as reader:
        assert list(reader) == []
    assert "refused a line" in caplog.text
    assert "my secret" not in caplog.text


def test_only_bad_lines_in_a_row_are_too_many(pipe: Pipe) -> None:
    bad = b"noise\n"
    with feed(pipe, bad * 2 + PROBE + bad * 3) as reader:
        reader.limits = Limits(MAX_LINE_BYTES, 3)
        messages = iter(reader)
        assert next(messages) == ProbeDevices(7)
        with pytest.raises(TooManyBadLines):
            next(messages)
    assert reader.refused == 5


def test_a_welcome_of_another_protocol_is_told_from_a_bad_line(pipe: Pipe) -> None:
    line = b'{"type":"welcome","protocol":2,"colour":"blue"}\n'
    with feed(pipe, line) as reader, pytest.raises(OtherProtocol, match="2"):
        list(reader)


def test_lines_from_several_threads_stay_whole(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end)
    text = "x" * 30_000  # larger than a pipe takes at once
    hello = Hello(1, text, "3.11", 1, "0")

    def speak() -> None:
        for _ in range(20):
            writer.send(hello)

    threads = [threading.Thread(target=speak) for _ in range(3)]
    for thread in threads:
        thread.start()
    with os.fdopen(os.dup(pipe.read_end), "rb") as source:
        for _ in range(60):
            assert msgspec.json.decode(source.readline(), type=Hello) == hello
    for thread in threads:
        thread.join()


def test_a_line_beyond_the_limit_is_not_sent(pipe: Pipe) -> None:
    with pytest.raises(ValueError, match="does not fit a line"):
        LineWriter(pipe.write_end).send(Hello(1, "x" * MAX_LINE_BYTES, "3.11", 1, "0"))


def test_speaking_to_nobody_ends_the_thread(pipe: Pipe) -> None:
    pipe.close(pipe.read_end)
    with pytest.raises(SystemExit):
        LineWriter(pipe.write_end).send(Bye())
