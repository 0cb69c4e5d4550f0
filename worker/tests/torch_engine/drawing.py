"""The engine called directly, and diffusers' own pipeline with the same settings beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import google_crc32c
import numpy as np
import numpy.typing as npt
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from atelier_worker.engine import Cancelled
from atelier_worker.errors import WorkerError
from atelier_worker.messages import (
    AnyPlanStep,
    Budget,
    Dtype,
    MakeLatents,
    MemoryFormat,
    ModelSource,
    Numerics,
    Phase,
    RunItem,
    SchedulerPlan,
)
from atelier_worker.torch_engine import TorchEngine
from orchestrator import job, plan, slots

Pixels = npt.NDArray[np.uint8]

FLOAT32 = Numerics(Dtype.FLOAT32, MemoryFormat.CONTIGUOUS, 1)


@dataclass
class Recorder:
    """A watch that remembers what it was told and may stop the work."""

    items: int = 1
    stop_after: Callable[[Phase, int], bool] = lambda _phase, _step: False
    told: list[tuple[Phase, int, int]] = field(default_factory=list)
    images: dict[int, tuple[tuple[int, int, int], int]] = field(default_factory=dict)
    failures: dict[int, WorkerError] = field(default_factory=dict)

    def progress(self, phase: Phase, step: int, steps: int, step_ms: float) -> None:
        assert step_ms >= 0
        self.told.append((phase, step, steps))
        self.check()

    def check(self) -> None:
        if self.told and self.stop_after(*self.told[-1][:2]):
            raise Cancelled

    def wanted(self, index: int) -> bool:
        return index not in self.failures

    def image(self, index: int, size: tuple[int, int, int], crc32c: int) -> None:
        self.images[index] = (size, crc32c)

    def failed(self, index: int, error: WorkerError) -> None:
        self.failures[index] = error
        if len(self.failures) == self.items:
            raise Cancelled


def engine() -> TorchEngine:
    return TorchEngine(Budget(2))


def loaded(folder: Path, numerics: Numerics = FLOAT32) -> TorchEngine:
    made = engine()
    made.load(ModelSource("m", str(folder)), "cpu", numerics, Recorder())
    return made


def draw(made: TorchEngine, steps: list[AnyPlanStep], seeds: list[int]) -> list[Pixels]:
    """The pictures, as they lie in their slots."""
    ((width, height),) = [(s.width, s.height) for s in steps if isinstance(s, MakeLatents)]
    with slots([width * height * 3] * len(seeds)) as memory:
        items = [
            RunItem(job(n), 1, seed, slot)
            for n, (seed, (_, slot)) in enumerate(zip(seeds, memory, strict=True))
        ]
        watch = Recorder(len(seeds))
        made.run("m", "cpu", items, steps, watch)
        pictures = []
        for index, (descriptor, slot) in enumerate(memory):
            with open(f"/proc/self/fd/{descriptor}", "rb") as file:
                raw = file.read()
            assert len(raw) == slot.bytes
            assert watch.images[index] == ((width, height, 3), google_crc32c.value(raw))
            pictures.append(np.frombuffer(raw, np.uint8).reshape(height, width, 3))
    return pictures


@dataclass
class Reference:
    """diffusers' pipeline, loaded by diffusers."""

    pipeline: Any

    @classmethod
    def load(cls, folder: Path, numerics: Numerics = FLOAT32) -> Reference:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            dtype=getattr(torch, numerics.dtype),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
        )
        if numerics.memory_format is MemoryFormat.CHANNELS_LAST:
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        pipeline.set_progress_bar_config(disable=True)
        torch.set_num_threads(numerics.threads)
        return cls(pipeline)

    def draw(
        self,
        prompt: str,
        seeds: list[int],
        *,
        scheduler: SchedulerPlan,
        size: tuple[int, int],
        steps: int,
        guidance: float = 4.0,
        negative_prompt: str | None = None,
    ) -> list[Pixels]:
        kind = getattr(diffusers, scheduler.class_)
        pipeline = self.pipeline
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **scheduler.config)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        images = pipeline(
            prompt,
            negative_prompt=negative_prompt,
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            guidance_scale=guidance,
            num_images_per_prompt=len(seeds),
            generator=generators,
        ).images
        return [np.asarray(image) for image in images]


def worst(ours: list[Pixels], theirs: list[Pixels]) -> int:
    """The largest difference of any channel of any pixel, in steps of 1/255."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    pairs = zip(ours, theirs, strict=True)
    return max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in pairs)


__all__ = ["FLOAT32", "Recorder", "Reference", "draw", "engine", "loaded", "plan", "worst"]
