"""From messages to an engine and back.

The main thread does the work, one message after the other. A reader thread takes lines off the
pipe all the time, so that a cancel is seen between two steps of a run and the end of stdin ends the
process at once, whatever the main thread does. The reader never computes nor calls the engine.

A message's life: reader → `Works` (who may be cancelled) → queue → table → engine → answer.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .engine import Cancelled, Engine
from .error_codes import ErrorCode
from .errors import WorkerError, classify
from .messages import (
    EXIT_BAD_LINES,
    EXIT_VERSION_MISMATCH,
    PROTOCOL,
    Budget,
    Bye,
    Cancel,
    Devices,
    Done,
    Failed,
    Hello,
    Image,
    Load,
    Loaded,
    Measure,
    Measured,
    Phase,
    ProbeDevices,
    Progress,
    Ready,
    Run,
    RunItem,
    Shutdown,
    Started,
    ToWorker,
    Unload,
    Unloaded,
    Welcome,
    Work,
)
from .schema_hash import SCHEMA_HASH
from .wire import LineReader, LineWriter, OtherProtocol, TooManyBadLines

log = logging.getLogger(__name__)

EXIT_DEFECT = 70
MAX_INFLIGHT = 1


class Works:
    """The works that may be cancelled: from the moment their message is read until they ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled: dict[Work, bool] = {}

    def admit(self, works: Sequence[Work]) -> None:
        with self._lock:
            self._cancelled.update(dict.fromkeys(works, False))

    def cancel(self, work: Work) -> bool:
        """Whether this work was still here."""
        with self._lock:
            known = work in self._cancelled
            if known:
                self._cancelled[work] = True
            return known

    def is_cancelled(self, work: Work) -> bool:
        return self._cancelled.get(work, False)

    def forget(self, works: Sequence[Work]) -> None:
        with self._lock:
            for work in works:
                self._cancelled.pop(work, None)


def works_of(message: ToWorker) -> list[Work]:
    """Whatever a cancel could name while this message is worked on."""
    match message:
        case Run():
            return [Work(message.run, item.job, item.attempt) for item in message.items]
        case Load(work=Work() as work):
            return [work]
        case _:
            return []


class LoadWatch:
    """Reports a load to the work that waits for it, if any does."""

    def __init__(self, send: LineWriter, works: Works, work: Work | None) -> None:
        self._send, self._works, self._work = send, works, work

    def progress(self, phase: Phase, step: int, steps: int, step_ms: float) -> None:
        if self._work is not None:
            self._send.send(Progress(self._work, phase, step, steps, step_ms))
        self.check()

    def check(self) -> None:
        if self._work is not None and self._works.is_cancelled(self._work):
            raise Cancelled


class ItemsWatch:
    """Reports a run, item by item. An item that was cancelled or failed is not spoken of again.

    The others keep their place in the batch: pixels depend on its size, so nobody else's change.
    """

    def __init__(self, send: LineWriter, works: Works, run: Run) -> None:
        self._send, self._works = send, works
        self._items: list[RunItem] = run.items
        self._open = dict(enumerate(works_of(run)))
        self._step: int | None = None

    def start(self) -> None:
        for work in self._open.values():
            self._send.send(Started(work))
        self.check()

    def progress(self, phase: Phase, step: int, steps: int, step_ms: float) -> None:
        if phase is Phase.DENOISE:
            self._step = step
        for work in self._open.values():
            self._send.send(Progress(work, phase, step, steps, step_ms))
        self.check()

    def check(self) -> None:
        for index, work in list(self._open.items()):
            if self._works.is_cancelled(work):
                self._end(index, WorkerError(ErrorCode.PROCESSING_CANCELLED, "cancelled"))
        if not self._open:
            raise Cancelled

    def wanted(self, index: int) -> bool:
        return index in self._open

    def image(self, index: int, size: tuple[int, int, int], crc32c: int) -> None:
        width, height, channels = size
        slot = self._items[index].slot.slot
        length = width * height * channels
        work = self._open[index]
        self._send.send(Image(work, slot, 0, length, width, height, channels, crc32c))

    def failed(self, index: int, error: WorkerError) -> None:
        self._end(index, error)
        if not self._open:
            raise Cancelled

    def fail_all(self, error: WorkerError) -> None:
        for index in list(self._open):
            self._end(index, error)

    def done(self) -> list[Work]:
        return list(self._open.values())

    def _end(self, index: int, error: WorkerError) -> None:
        work = self._open.pop(index)
        self._send.send(Failed(work=work, step=self._step, error=error.body()))


class Loop:
    """One worker's conversation, from `hello` to `bye`."""

    def __init__(
        self,
        stdin: int,
        stdout: int,
        make_engine: Callable[[Budget], Engine],
        build: str,
    ) -> None:
        self._lines = LineReader(stdin)
        self._out = LineWriter(stdout)
        self._make_engine = make_engine
        self._build = build
        self._inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self._works = Works()
        self._late_cancels = 0
        self._engine: Engine
        self._table: dict[type[ToWorker], Callable[[Any], None]] = {
            Welcome: self._welcome_again,
            ProbeDevices: self._probe_devices,
            Load: self._load,
            Unload: self._unload,
            Measure: self._measure,
            Run: self._run,
            Cancel: self._cancel,
            Shutdown: self._shutdown,
        }

    def serve(self) -> NoReturn:
        """Speak until the orchestrator says `shutdown` or goes away."""
        python = ".".join(map(str, sys.version_info[:3]))
        self._out.send(Hello(PROTOCOL, self._build, python, os.getpid(), SCHEMA_HASH))
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        welcome = self._inbox.get()
        if not isinstance(welcome, Welcome):
            log.error("expected a welcome and got %s", type(welcome).__name__)
            leave(EXIT_BAD_LINES)
        if welcome.protocol != PROTOCOL:
            leave_other_protocol(welcome.protocol)
        self._lines.limits = welcome.limits
        self._engine = self._make_engine(welcome.budget)
        self._out.send(Ready(self._engine.versions(), self._engine.backends(), MAX_INFLIGHT))
        while True:
            message = self._inbox.get()
            self._table[type(message)](message)

    # --- the reader thread -----------------------------------------------------------------------

    def _read(self) -> None:
        status = EXIT_DEFECT
        try:
            for message in self._lines:
                if isinstance(message, Cancel):
                    self._cancel(message)
                else:
                    self._works.admit(works_of(message))
                    self._inbox.put(message)
            status = 0
        except TooManyBadLines as problem:
            log.error("gave up: %s", problem)
            status = EXIT_BAD_LINES
        except OtherProtocol as problem:
            leave_other_protocol(problem.args[0])
        finally:
            # A worker that no longer hears must not live on, whatever made it deaf.
            if status == EXIT_DEFECT:
                traceback.print_exc()
            leave(status)

    def _cancel(self, message: Cancel) -> None:
        if not self._works.cancel(message.work):
            self._late_cancels += 1
            log.info("dropped a late cancel of %s (%d so far)", message.work, self._late_cancels)

    # --- the main thread -------------------------------------------------------------------------

    def _attempt(self, act: Callable[[], None], fail: Callable[[WorkerError], None]) -> None:
        """The loop's edge: whatever an engine raises becomes an answer."""
        try:
            act()
        except Cancelled:
            fail(WorkerError(ErrorCode.PROCESSING_CANCELLED, "cancelled"))
        except Exception as problem:  # noqa: BLE001 (the one place: `classify` logs what it cannot name)
            fail(classify(problem))

    def _request(self, re: int, act: Callable[[], None]) -> None:
        self._attempt(act, lambda error: self._out.send(Failed(re=re, error=error.body())))

    def _welcome_again(self, _: Welcome) -> None:
        log.warning("dropped a second welcome")

    def _probe_devices(self, message: ProbeDevices) -> None:
        self._request(
            message.id,
            lambda: self._out.send(Devices(message.id, self._engine.probe_devices())),
        )

    def _load(self, message: Load) -> None:
        watch = LoadWatch(self._out, self._works, message.work)

        def act() -> None:
            began = time.perf_counter()
            watch.check()
            size = self._engine.load(message.model, message.device, message.numerics, watch)
            load_ms = (time.perf_counter() - began) * 1000
            self._out.send(Loaded(message.id, message.model.model, size, load_ms))

        self._request(message.id, act)
        self._works.forget(works_of(message))
        self._out.send(self._engine.usage())

    def _unload(self, message: Unload) -> None:
        self._request(
            message.id,
            lambda: self._out.send(
                Unloaded(message.id, message.model, self._engine.unload(message.model))
            ),
        )
        self._out.send(self._engine.usage())

    def _measure(self, message: Measure) -> None:
        def act() -> None:
            size = (message.width, message.height)
            results = self._engine.measure(message.model, message.device, message.candidates, size)
            self._out.send(Measured(message.id, results))

        self._request(message.id, act)

    def _run(self, message: Run) -> None:
        watch = ItemsWatch(self._out, self._works, message)

        def act() -> None:
            watch.start()
            timings = self._engine.run(
                message.model, message.device, message.items, message.steps, watch
            )
            for work in watch.done():
                self._out.send(Done(work, timings))

        self._attempt(act, watch.fail_all)
        self._works.forget(works_of(message))
        self._out.send(self._engine.usage())

    def _shutdown(self, _: Shutdown) -> None:
        self._out.send(Bye())
        leave(0)


def leave(status: int) -> NoReturn:
    """End the process now, without waiting for threads that may be deep in a computation."""
    sys.stderr.flush()
    os._exit(status)


def leave_other_protocol(theirs: int) -> NoReturn:
    log.error(
        "the orchestrator speaks protocol %d and this worker speaks %d; "
        "run `atelier worker install` so that both come from one release",
        theirs,
        PROTOCOL,
    )
    leave(EXIT_VERSION_MISMATCH)
