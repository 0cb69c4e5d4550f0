"""The engine with torch and diffusers: puts the six parts together and owns what is loaded.

The only package that imports torch. Its modules have the orchestrator's names and order: device,
memory, model, (processing,) inference, postprocessing; each imports only those before it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import diffusers
import torch
import transformers

from ..engine import RunWatch, Watch
from ..error_codes import ErrorCode
from ..errors import WorkerError
from ..messages import (
    AnyPlanStep,
    Budget,
    Decode,
    Denoise,
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
from . import device as devices
from . import inference, memory, postprocessing
from . import model as models
from .inference import Drawing
from .model import LoadedModel


class TorchEngine:
    """See `engine.Engine`, which this is."""

    def __init__(self, budget: Budget) -> None:
        self._threads = budget.threads
        self._loaded: dict[str, LoadedModel] = {}
        torch.set_num_threads(max(budget.threads, 1))
        if torch.get_num_interop_threads() != 1:  # may be set only once in a process
            torch.set_num_interop_threads(1)  # operations run one after the other here
        diffusers.utils.logging.set_verbosity_error()
        transformers.utils.logging.set_verbosity_error()

    def versions(self) -> dict[str, str]:
        libraries = {"torch": torch, "diffusers": diffusers, "transformers": transformers}
        return {name: str(library.__version__) for name, library in libraries.items()}

    def backends(self) -> list[str]:
        return devices.backends()

    def probe_devices(self) -> list[WorkerDevice]:
        return devices.probe()

    def load(self, source: ModelSource, device: str, numerics: Numerics, watch: Watch) -> int:
        devices.use_threads(numerics, self._threads)
        here = self._loaded.get(source.model)
        if here is None:
            try:
                here = models.load(source, device, numerics, watch)
            except BaseException:
                memory.release()
                raise
            self._loaded[source.model] = here
        elif (here.source, str(here.device), here.numerics) != (source, device, numerics):
            raise inference.violation(f"load {source.model}, which is loaded in another way")
        return here.bytes

    def unload(self, model: str) -> int:
        size = self._find(model).bytes
        del self._loaded[model]
        memory.release()
        return size

    @torch.inference_mode()
    def measure(
        self,
        source: ModelSource,
        device: str,
        candidates: Sequence[Numerics],
        size: tuple[int, int],
    ) -> list[Measurement]:
        try:
            return inference.measure(source, device, candidates, size, self._threads)
        finally:
            memory.release()

    @torch.inference_mode()
    def run(
        self,
        model: str,
        device: str,
        items: Sequence[RunItem],
        steps: Sequence[AnyPlanStep],
        watch: RunWatch,
    ) -> RunTimings:
        loaded = self._find(model)
        if str(loaded.device) != device:
            raise inference.violation(f"draw on {device} with {model}, loaded on {loaded.device}")
        devices.use_threads(loaded.numerics, self._threads)
        for step in steps:
            if isinstance(step, MakeLatents):
                postprocessing.check_slots(list(items), step.width, step.height)
        drawing = Drawing(loaded, items)
        spent = dict.fromkeys(Phase, 0.0)
        for step in steps:
            began = time.perf_counter()
            match step:
                case EncodePrompt():
                    drawing.encode(step)
                    watch.progress(Phase.ENCODE, 1, 1, (time.perf_counter() - began) * 1000)
                    phase = Phase.ENCODE
                case MakeLatents():
                    drawing.make_latents(step)
                    phase = Phase.ENCODE
                case Denoise():
                    drawing.denoise(step, watch)
                    for index in drawing.broken():
                        if watch.wanted(index):
                            watch.failed(index, not_a_number("latents"))
                    phase = Phase.DENOISE
                case Decode():
                    decode(drawing, items, watch)
                    phase = Phase.DECODE
            spent[phase] += (time.perf_counter() - began) * 1000
        return RunTimings(spent[Phase.ENCODE], spent[Phase.DENOISE], spent[Phase.DECODE])

    def usage(self) -> Usage:
        return memory.usage()

    def _find(self, model: str) -> LoadedModel:
        if model not in self._loaded:
            raise inference.violation(f"use {model}, which is not loaded here")
        return self._loaded[model]


def decode(drawing: Drawing, items: Sequence[RunItem], watch: RunWatch) -> None:
    """Pictures into their slots; after the progress of this phase nothing is cancelled any more."""
    watch.check()
    if drawing.latents is None:
        raise inference.violation("decode before there are latents")
    began = time.perf_counter()
    pictures = postprocessing.to_pixels(drawing.model, drawing.latents)
    watch.progress(Phase.DECODE, 1, 1, (time.perf_counter() - began) * 1000)
    for index, (item, pixels) in enumerate(zip(items, pictures, strict=True)):
        if not watch.wanted(index):
            continue
        if pixels is None:
            watch.failed(index, not_a_number("pixels"))
            continue
        height, width, channels = pixels.shape
        watch.image(index, (width, height, channels), postprocessing.write(item.slot, pixels))


def not_a_number(what: str) -> WorkerError:
    return WorkerError(
        ErrorCode.INFERENCE_FAILED, f"draw: the model computed {what} that are no numbers"
    )
