"""A worker process with the fake engine, spoken to as the orchestrator would."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import google_crc32c
import msgspec
import pytest

from atelier_worker.error_codes import ErrorCode
from atelier_worker.loop import Loop
from atelier_worker.messages import (
    EXIT_BAD_LINES,
    EXIT_VERSION_MISMATCH,
    MAX_BAD_LINES,
    PROTOCOL,
    Bye,
    Cancel,
    Devices,
    Done,
    Dtype,
    Failed,
    Hello,
    Image,
    Load,
    Loaded,
    Measure,
    Measured,
    MemoryFormat,
    ModelSource,
    Numerics,
    Phase,
    ProbeDevices,
    Progress,
    Ready,
    Shutdown,
    Started,
    ToWorker,
    Unload,
    Unloaded,
    Usage,
)
from orchestrator import PATIENCE_S, TESTS, WELCOME, Worker, plan, run_of, slots, work, worker

NUMERICS = Numerics(Dtype.FLOAT32, MemoryFormat.CONTIGUOUS, 1)
SLOT_BYTES = 8 * 8 * 3
OTHER_RUN = UUID("0199a3f2-7c1e-7b60-9d55-000000000002")


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Worker]:
    """A fake worker that is ready."""
    with worker(tmp_path) as started:
        started.welcome()
        yield started


def load(folder: str = "/m", *, waited_for: bool = False) -> Load:
    return Load(
        id=1,
        work=work(1) if waited_for else None,
        model=ModelSource("demo", folder),
        device="cpu",
        numerics=NUMERICS,
    )


def assert_alive(worker: Worker) -> None:
    worker.say(ProbeDevices(99))
    assert worker.hear(Devices).re == 99


# --- the conversation ---------------------------------------------------------------------------


def test_hello_comes_first_and_the_engine_is_made_from_the_welcome(tmp_path: Path) -> None:
    with worker(tmp_path) as fake:
        hello = fake.hear(Hello)
        assert (hello.protocol, hello.pid) == (PROTOCOL, fake.process.pid)
        assert "fake" in hello.build
        fake.say(WELCOME)
        assert fake.hear(Ready).versions == {"fake": "2 threads"}


def test_every_message_has_its_place_in_the_table() -> None:
    table = Loop(0, 1, NotImplemented, "")._table
    assert set(table) == set(ToWorker.__args__)


def test_each_request_is_answered_under_its_id(fake: Worker) -> None:
    fake.say(load())
    loaded = fake.hear(Loaded)
    assert (loaded.re, loaded.model, loaded.bytes) == (1, "demo", 4)
    fake.hear(Usage)
    fake.say(Measure(2, ModelSource("demo", "/m"), "cpu", [NUMERICS], 8, 8))
    measured = fake.hear(Measured)
    assert (measured.re, [result.numerics for result in measured.results]) == (2, [NUMERICS])
    fake.say(Unload(3, "demo"))
    assert fake.hear(Unloaded).re == 3
    fake.hear(Usage)
    fake.say(Unload(4, "demo"))
    assert fake.hear(Failed).re == 4


def test_a_run_tells_its_steps_then_its_pictures_then_that_it_is_done(fake: Worker) -> None:
    with slots([SLOT_BYTES, SLOT_BYTES]) as made:
        fake.say(run_of(plan("draw"), made))
        assert [fake.hear(Started).work for _ in made] == [work(1), work(2)]
        for step in (1, 2, 3):
            for item in (1, 2):
                told = fake.hear(Progress)
                assert (told.work, told.phase, told.step) == (work(item), Phase.DENOISE, step)
        for item, (descriptor, slot) in enumerate(made, start=1):
            image = fake.hear(Image)
            pixels = os.pread(descriptor, SLOT_BYTES, 0)
            assert pixels == bytes([item]) * SLOT_BYTES
            assert image == Image(
                work(item), slot.slot, 0, SLOT_BYTES, 8, 8, 3, google_crc32c.value(pixels)
            )
        assert [fake.hear(Done).work for _ in made] == [work(1), work(2)]
        fake.hear(Usage)


def test_shutdown_waits_for_what_was_asked_before(fake: Worker) -> None:
    with slots([SLOT_BYTES]) as made:
        fake.say(run_of(plan("draw"), made))
        fake.say(Shutdown())
        before, _ = fake.hear_until(Bye)
        assert any(isinstance(message, Done) for message in before)
    assert fake.exit_status() == 0


# --- cancelling ---------------------------------------------------------------------------------


def test_cancel_reaches_a_run_between_two_steps_and_the_next_run_works(fake: Worker) -> None:
    with slots([SLOT_BYTES]) as made:
        fake.say(run_of(plan("wait to be cancelled"), made))
        fake.hear(Started)
        fake.say(Cancel(work(1)))
        failed = fake.hear(Failed)
        assert (failed.work, failed.error.code) == (work(1), ErrorCode.PROCESSING_CANCELLED)
        fake.hear(Usage)
        fake.say(run_of(plan("draw"), made, OTHER_RUN))
        before, _ = fake.hear_until(Done)
        assert any(isinstance(message, Image) for message in before)


def test_cancel_is_heard_for_a_run_that_has_not_begun(fake: Worker) -> None:
    with slots([SLOT_BYTES]) as made:
        fake.say(run_of(plan("wait to be cancelled"), made))
        fake.hear(Started)
        fake.say(run_of(plan("draw"), made, OTHER_RUN))
        fake.say(Cancel(work(1, OTHER_RUN)))
        fake.say(Cancel(work(1)))
        assert fake.hear(Failed).work == work(1)
        before, failed = fake.hear_until(Failed)
        assert failed.work == work(1, OTHER_RUN)
        assert not any(isinstance(message, Progress | Image) for message in before)


def test_cancel_of_one_item_leaves_the_others_alone(fake: Worker) -> None:
    with slots([SLOT_BYTES, SLOT_BYTES]) as made:
        # The first run holds the worker until the cancel of the second one's item has been read.
        fake.say(run_of(plan("wait to be cancelled"), made[:1]))
        fake.say(run_of(plan("draw"), made, OTHER_RUN))
        fake.say(Cancel(work(1, OTHER_RUN)))
        fake.say(Cancel(work(1)))
        before, done = fake.hear_until(Done)
        assert done.work == work(2, OTHER_RUN)
        ended = [message.work for message in before if isinstance(message, Failed)]
        assert ended == [work(1), work(1, OTHER_RUN)]
        drawn = [message.work for message in before if isinstance(message, Image)]
        assert drawn == [work(2, OTHER_RUN)]


def test_cancel_reaches_work_that_is_still_loading_its_model(fake: Worker) -> None:
    fake.say(load("wait to be cancelled", waited_for=True))
    fake.say(Cancel(work(1)))
    failed = fake.hear(Failed)
    assert (failed.re, failed.error.code) == (1, ErrorCode.PROCESSING_CANCELLED)
    fake.hear(Usage)
    fake.say(Unload(2, "demo"))
    assert fake.hear(Failed).error.code == ErrorCode.PROTOCOL_VIOLATION  # nothing was left behind


def test_a_load_reports_to_the_work_that_waits_for_it(fake: Worker) -> None:
    fake.say(load(waited_for=True))
    before, _ = fake.hear_until(Loaded)
    steps = [(m.work, m.phase, m.step, m.steps) for m in before if isinstance(m, Progress)]
    assert steps == [(work(1), Phase.LOAD, step, 4) for step in (1, 2, 3, 4)]


def test_a_late_cancel_is_dropped_and_counted(fake: Worker) -> None:
    with slots([SLOT_BYTES]) as made:
        fake.say(run_of(plan("draw"), made))
        fake.hear_until(Usage)
        fake.say(Cancel(work(1)))
        assert_alive(fake)
        assert "dropped a late cancel" in fake.log()
        # The same job may come again in another attempt; the old cancel does not touch it.
        fake.say(run_of(plan("draw"), made))
        fake.hear_until(Done)


# --- failing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        ("torch is out of memory", ErrorCode.MEMORY_EXHAUSTED),
        ("python is out of memory", ErrorCode.MEMORY_EXHAUSTED),
        ("the cpu allocator gives up", ErrorCode.MEMORY_EXHAUSTED),
        ("a file is missing", ErrorCode.MODEL_UNREADABLE),
        ("a file is cut short", ErrorCode.MODEL_UNREADABLE),
        ("the card is too old", ErrorCode.DEVICE_UNSUPPORTED),
        ("a typed failure", ErrorCode.INFERENCE_FAILED),
        ("a defect", ErrorCode.WORKER_INTERNAL),
    ],
)
def test_an_exception_becomes_its_word_and_the_worker_lives_on(
    fake: Worker, failure: str, code: ErrorCode
) -> None:
    fake.say(load(failure))
    failed = fake.hear(Failed)
    assert (failed.re, failed.error.code) == (1, code)
    fake.hear(Usage)
    with slots([SLOT_BYTES]) as made:
        fake.say(run_of(plan(failure), made))
        fake.hear(Started)
        failed = fake.hear(Failed)
        assert (failed.work, failed.error.code) == (work(1), code)
    fake.hear(Usage)
    assert_alive(fake)


def test_a_defect_leaves_its_traceback_in_the_log_and_not_in_the_message(fake: Worker) -> None:
    fake.say(load("a defect"))
    failed = fake.hear(Failed)
    assert "secret prompt" not in failed.error.message
    assert "Traceback" in fake.log()
    assert "KeyError" in fake.log()


def test_one_broken_item_does_not_take_the_others_along(fake: Worker) -> None:
    with slots([SLOT_BYTES, SLOT_BYTES]) as made:
        fake.say(run_of(plan("break item 0"), made))
        before, done = fake.hear_until(Done)
        assert done.work == work(2)
        (failed,) = (message for message in before if isinstance(message, Failed))
        assert (failed.work, failed.step) == (work(1), 3)


def test_a_bad_line_is_refused_and_a_hundred_in_a_row_end_the_worker(fake: Worker) -> None:
    for _ in range(MAX_BAD_LINES - 1):
        fake.say_raw(b"noise")
    assert_alive(fake)
    for _ in range(MAX_BAD_LINES):
        fake.say_raw(b"noise")
    assert fake.exit_status() == EXIT_BAD_LINES
    assert "bad lines in a row" in fake.log()


@pytest.mark.parametrize(
    "welcome",
    [
        b'{"type":"welcome","protocol":2,"limits":{"line_bytes":1,"bad_lines":1},"budget":{"threads":1}}',
        b'{"type":"welcome","protocol":2,"whatever":"protocol 2 has"}',
    ],
)
def test_another_protocol_ends_the_worker_with_a_sentence(tmp_path: Path, welcome: bytes) -> None:
    with worker(tmp_path) as fake:
        fake.hear(Hello)
        fake.say_raw(welcome)
        assert fake.exit_status() == EXIT_VERSION_MISMATCH
        assert "the orchestrator speaks protocol 2 and this worker speaks 1" in fake.log()


def test_anything_but_a_welcome_ends_the_worker(tmp_path: Path) -> None:
    with worker(tmp_path) as fake:
        fake.hear(Hello)
        fake.say(ProbeDevices(1))
        assert fake.exit_status() == EXIT_BAD_LINES


# --- the process --------------------------------------------------------------------------------


def test_the_end_of_stdin_ends_a_worker_that_hangs(fake: Worker) -> None:
    with slots([SLOT_BYTES]) as made:
        fake.say(run_of(plan("hang and let others run"), made))
        fake.hear(Started)
        fake.hang_up()
        assert fake.exit_status() == 0


def test_what_libraries_print_goes_to_stderr_and_children_read_nothing(fake: Worker) -> None:
    with slots([SLOT_BYTES]) as made:
        fake.say(run_of(plan("print everywhere", steps=1), made))
        fake.hear(Started)
        fake.hear(Progress)
        fake.hear(Image)
    for printed in ("from print", "from descriptor 1", "from a child"):
        assert printed in fake.log()


def test_ctrl_c_is_the_orchestrators_business(fake: Worker) -> None:
    fake.process.send_signal(signal.SIGINT)
    assert_alive(fake)


def test_a_signal_dumps_the_stacks_of_all_threads(fake: Worker) -> None:
    fake.process.send_signal(signal.SIGUSR1)
    assert_alive(fake)
    assert fake.log().count("most recent call first") == 2  # the reader's stack and ours
    assert "serve" in fake.log()  # the main thread's


def test_a_worker_whose_parent_is_gone_already_leaves_quietly(tmp_path: Path) -> None:
    with worker(tmp_path, arguments=["--parent", "1"]) as orphan:
        assert orphan.exit_status() == 0
        assert orphan.stderr.read_text() == ""


def test_a_worker_does_not_outlive_its_parent_even_when_it_holds_the_interpreter() -> None:
    # A process between us and the worker. We keep both pipes open, so that only the kernel's signal
    # can end the worker: its reader thread cannot run, and stdin does not end.
    between = subprocess.Popen(
        [sys.executable, "-c", BETWEEN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}"},
    )
    assert between.stdin is not None
    assert between.stdout is not None
    lines = [WELCOME, load("hang and hold the interpreter", waited_for=True)]
    for line in lines:
        between.stdin.write(msgspec.json.encode(line) + b"\n")
    between.stdin.flush()
    for kind in (Hello, Ready, Progress):
        msgspec.json.decode(between.stdout.readline(), type=kind)
    between.kill()
    between.wait()
    with selectors.DefaultSelector() as selector:
        selector.register(between.stdout, selectors.EVENT_READ)
        assert selector.select(PATIENCE_S), "the worker lives on"
    assert between.stdout.read() == b""
    between.stdin.close()
    between.stdout.close()


BETWEEN = """
import os, signal, subprocess, sys
subprocess.Popen([sys.executable, "-m", "fake", "--parent", str(os.getpid())])
signal.pause()
"""
