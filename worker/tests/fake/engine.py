"""An engine that draws flat colours and does what the prompt says.

It shows what an engine must do (report, let `Cancelled` pass, leave nothing half-changed) and says
that it is fake wherever it is asked. The script is the prompt of a run, or the folder of a model.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import google_crc32c

from atelier_worker.engine import RunWatch, Watch
from atelier_worker.error_codes import ErrorCode
from atelier_worker.errors import WorkerError
from atelier_worker.messages import (
    AnyPlanStep,
    Budget,
    Denoise,
    Dtype,
    EncodePrompt,
    MakeLatents,
    Measurement,
    ModelSource,
    Numerics,
    Phase,
    RunItem,
    RunTimings,
    Usage,
    WorkerDevice,
)

COMPONENTS = 4
FOREVER_S = 3600


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


class SafetensorError(Exception):
    """Named like that of safetensors."""


FAILURES: dict[str, Exception] = {
    "torch is out of memory": OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    "python is out of memory": MemoryError(),
    "the cpu allocator gives up": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
    ),
    "a file is missing": FileNotFoundError(2, "No such file or directory", "/m/vae/config.json"),
    "a file is cut short": SafetensorError("incomplete metadata, file not fully covered"),
    "the card is too old": RuntimeError("CUDA error: no kernel image is available for execution"),
    "a typed failure": WorkerError(ErrorCode.INFERENCE_FAILED, "draw: nothing but noise"),
    "a defect": KeyError("secret prompt"),
}


class FakeEngine:
    """See `atelier_worker.engine.Engine`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._loaded: set[str] = set()

    def versions(self) -> dict[str, str]:
        return {"fake": f"{self._budget.threads} threads"}

    def backends(self) -> list[str]:
        return ["fake"]

    def probe_devices(self) -> list[WorkerDevice]:
        return [WorkerDevice(id="cpu", name="fake", backend="fake", dtypes=[Dtype.FLOAT32])]

    def load(self, source: ModelSource, device: str, numerics: Numerics, watch: Watch) -> int:
        for step in range(1, COMPONENTS + 1):
            self._obey(source.folder, watch)
            watch.progress(Phase.LOAD, step, COMPONENTS, 1.0)
        self._loaded.add(source.model)
        return COMPONENTS

    def unload(self, model: str) -> int:
        if model not in self._loaded:
            raise WorkerError(ErrorCode.PROTOCOL_VIOLATION, f"use {model}, not loaded in this fake")
        self._loaded.remove(model)
        return COMPONENTS

    def measure(
        self,
        source: ModelSource,
        device: str,
        candidates: Sequence[Numerics],
        size: tuple[int, int],
    ) -> list[Measurement]:
        return [Measurement(candidate, 1.0) for candidate in candidates]

    def run(
        self,
        model: str,
        device: str,
        items: Sequence[RunItem],
        steps: Sequence[AnyPlanStep],
        watch: RunWatch,
    ) -> RunTimings:
        script, width, height = "", 0, 0
        for step in steps:
            match step:
                case EncodePrompt():
                    script = step.prompt
                case MakeLatents():
                    width, height = step.width, step.height
                case Denoise():
                    for number in range(step.from_, step.to):
                        self._obey(script, watch)
                        watch.progress(Phase.DENOISE, number + 1, step.steps, 1.0)
                case _:
                    watch.check()
                    for index, item in enumerate(items):
                        if watch.wanted(index):
                            self._draw(index, item, width, height, script, watch)
        return RunTimings(0.0, 1.0, 0.0)

    def usage(self) -> Usage:
        return Usage(1)

    def _draw(
        self, index: int, item: RunItem, width: int, height: int, script: str, watch: RunWatch
    ) -> None:
        if script == f"break item {index}":
            return watch.failed(index, WorkerError(ErrorCode.INFERENCE_FAILED, "draw: broken"))
        raw = bytes([item.seed % 256]) * (width * height * 3)
        descriptor = os.open(item.slot.path, os.O_WRONLY)
        os.pwrite(descriptor, raw, 0)
        os.close(descriptor)
        return watch.image(index, (width, height, 3), google_crc32c.value(raw))

    def _obey(self, script: str, watch: Watch) -> None:
        if script in FAILURES:
            raise FAILURES[script]
        match script:
            case "wait to be cancelled":
                while True:
                    watch.check()
                    time.sleep(0.001)
            case "hang and let others run":
                time.sleep(FOREVER_S)
            case "hang and hold the interpreter":
                watch.progress(Phase.ENCODE, 1, 1, 1.0)
                ctypes.PyDLL(None).sleep(FOREVER_S)
            case "print everywhere":
                print("from print")  # noqa: T201 (what a careless library does)
                sys.stdout.flush()
                os.write(1, b"from descriptor 1\n")
                subprocess.run(["cat"], check=True)
                subprocess.run(["echo", "from a child"], check=True)
