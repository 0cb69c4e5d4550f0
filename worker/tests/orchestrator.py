"""The other side of the pipes: starts a worker process and plays the orchestrator's part.

Every wait has the same generous limit, which only a broken worker meets.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import msgspec

from atelier_worker.messages import (
    MAX_BAD_LINES,
    MAX_LINE_BYTES,
    PROTOCOL,
    AnyPlanStep,
    Budget,
    Decode,
    Denoise,
    EncodePrompt,
    FromWorker,
    Hello,
    Limits,
    MakeLatents,
    Ready,
    Run,
    RunItem,
    SchedulerPlan,
    Slot,
    ToWorker,
    Welcome,
    Work,
)

TESTS = Path(__file__).parent
PATIENCE_S = 120
RUN = UUID("0199a3f2-7c1e-7b60-9d55-0c1f2e3a4b5c")

WELCOME = Welcome(PROTOCOL, Limits(MAX_LINE_BYTES, MAX_BAD_LINES), Budget(2))

Kind = TypeVar("Kind", bound=FromWorker)


class Worker:
    """A running worker process."""

    def __init__(self, module: str, stderr: Path, arguments: list[str] | None = None) -> None:
        self.stderr = stderr
        with stderr.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *(arguments or [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}"},
            )
        self._decoder: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)
        self._held = b""

    def say(self, message: ToWorker) -> None:
        self.say_raw(msgspec.json.encode(message))

    def say_raw(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def hear(self, kind: type[Kind]) -> Kind:
        """The next message, which must be of this kind."""
        message = self._next()
        assert isinstance(message, kind), f"expected {kind.__name__}, got {message}{self.log()}"
        return message

    def hear_until(self, kind: type[Kind]) -> tuple[list[FromWorker], Kind]:
        """Whatever comes before the first message of this kind, and that one."""
        before: list[FromWorker] = []
        while True:
            message = self._next()
            if isinstance(message, kind):
                return before, message
            before.append(message)

    def welcome(self) -> Ready:
        self.hear(Hello)
        self.say(WELCOME)
        return self.hear(Ready)

    def exit_status(self) -> int:
        """Waits for the process to end by itself; nothing more may have been said."""
        assert self._read() == b""
        return self.process.wait(PATIENCE_S)

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def log(self) -> str:
        return f"\n--- stderr of the worker\n{self.stderr.read_text()}"

    def _next(self) -> FromWorker:
        while b"\n" not in self._held:
            chunk = self._read()
            assert chunk, f"the worker ended{self.log()}"
            self._held += chunk
        line, self._held = self._held.split(b"\n", 1)
        return self._decoder.decode(line)

    def _read(self) -> bytes:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(PATIENCE_S), f"nothing in {PATIENCE_S} s{self.log()}"
        return os.read(self.process.stdout.fileno(), 1 << 16)


@contextmanager
def worker(
    folder: Path, module: str = "fake", arguments: list[str] | None = None
) -> Iterator[Worker]:
    """A worker that does not outlive the test."""
    started = Worker(module, folder / f"stderr-{time.monotonic_ns()}", arguments)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()
        for pipe in (started.process.stdin, started.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def slots(sizes: list[int]) -> Iterator[list[tuple[int, Slot]]]:
    """Memory files as the orchestrator makes them, and how messages name them."""
    made = []
    for number, size in enumerate(sizes):
        descriptor = os.memfd_create(f"slot-{number}")
        os.ftruncate(descriptor, size)
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        made.append((descriptor, Slot(f"s{number}", path, size)))
    try:
        yield made
    finally:
        for descriptor, _ in made:
            os.close(descriptor)


def job(number: int) -> UUID:
    return UUID(int=RUN.int ^ number)


def work(number: int, run: UUID = RUN) -> Work:
    return Work(run, job(number), 1)


def plan(
    prompt: str,
    *,
    size: tuple[int, int] = (8, 8),
    steps: int = 3,
    guidance: float = 4.0,
    scheduler: SchedulerPlan | None = None,
) -> list[AnyPlanStep]:
    """Text to picture, as the planner would write it."""
    return [
        EncodePrompt(prompt, ""),
        MakeLatents(*size),
        Denoise(scheduler or SchedulerPlan("DDIMScheduler"), steps, guidance, 0, steps),
        Decode(),
    ]


def run_of(plan: list[AnyPlanStep], made: list[tuple[int, Slot]], run: UUID = RUN) -> Run:
    """One item a slot, with seeds 1, 2, …"""
    items = [RunItem(job(n), 1, n, slot) for n, (_, slot) in enumerate(made, start=1)]
    return Run(run, "demo", "cpu", items, plan)
