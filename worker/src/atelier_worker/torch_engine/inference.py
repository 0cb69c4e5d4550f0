"""From text and noise to latents: encoding, schedulers and the denoise loop.

Our own loop over diffusers' components, equal to its StableDiffusionPipeline bit by bit (the tests
compare them), because a loop that is ours can be cancelled, timed and continued between steps
without private fields. Never chooses a number: each comes from the plan.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..engine import Watch
from ..error_codes import ErrorCode
from ..errors import WorkerError
from ..messages import (
    Denoise,
    Detail,
    EncodePrompt,
    MakeLatents,
    Measurement,
    ModelSource,
    Numerics,
    Phase,
    RunItem,
    SchedulerPlan,
)
from . import device as devices
from . import model as models
from .model import LoadedModel

TIMED_CALLS = 3
HOPELESS = 3.0
"""A candidate whose first call takes so many times the best first call is not timed further."""


class Drawing:
    """One batch on its way from text to latents. Methods in the order of the plan's steps."""

    def __init__(self, model: LoadedModel, items: Sequence[RunItem]) -> None:
        self.model = model
        self.latents: torch.Tensor | None = None
        # One generator a picture: its noise is the same in any company.
        self.generators = [torch.Generator("cpu").manual_seed(item.seed) for item in items]
        self._prompt: torch.Tensor | None = None
        self._negative: torch.Tensor | None = None
        self._scheduler: Any = None
        self._plan: tuple[SchedulerPlan, int] | None = None
        self._reached = 0

    def encode(self, step: EncodePrompt) -> None:
        self._prompt = encode_text(self.model, step.prompt)
        self._negative = encode_text(self.model, step.negative_prompt)

    def make_latents(self, step: MakeLatents) -> None:
        scale = self.model.pixels_per_latent
        for side, pixels in (("width", step.width), ("height", step.height)):
            if pixels == 0 or pixels % scale:
                raise invalid(side, f"must be a multiple of {scale} for this model, not {pixels}")
        shape = (1, self.model.unet.config.in_channels, step.height // scale, step.width // scale)
        dtype = devices.TORCH_DTYPE[self.model.numerics.dtype]
        noise = [torch.randn(shape, generator=g, dtype=dtype) for g in self.generators]
        self.latents = torch.cat(noise).to(self.model.device)

    def denoise(self, step: Denoise, watch: Watch) -> None:
        """Steps `from` to `to`, reporting each. Goes on with the scheduler of the step before."""
        latents, prompt, negative = self.latents, self._prompt, self._negative
        if latents is None or prompt is None or negative is None:
            raise violation("denoise before there are latents and a prompt")
        scheduler = self._scheduler_for(step)
        if step.from_ == 0:
            latents = latents * scheduler.init_noise_sigma
        count = len(self.generators)
        guided = step.guidance_scale > 1.0
        conditioning = prompt.repeat(count, 1, 1)
        if guided:
            conditioning = torch.cat([negative.repeat(count, 1, 1), conditioning])
        extra = step_arguments(scheduler, self.generators)
        times = timesteps_of_each_step(scheduler, step.steps)
        for number in range(step.from_, step.to):
            began = time.perf_counter()
            for t in times[number]:
                doubled = torch.cat([latents] * 2) if guided else latents
                sample = scheduler.scale_model_input(doubled, t)
                noise = self.model.unet(
                    sample, t, encoder_hidden_states=conditioning, return_dict=False
                )[0]
                if guided:
                    without, with_text = noise.chunk(2)
                    noise = without + step.guidance_scale * (with_text - without)
                latents = scheduler.step(noise, t, latents, **extra, return_dict=False)[0]
            devices.wait(self.model.device)
            self.latents, self._reached = latents, number + 1
            step_ms = (time.perf_counter() - began) * 1000
            watch.progress(Phase.DENOISE, number + 1, step.steps, step_ms)

    def broken(self) -> list[int]:
        """Items whose latents hold something that is no number."""
        if self.latents is None:
            return []
        finite = torch.isfinite(self.latents).flatten(1).all(dim=1)
        return [index for index, fine in enumerate(finite.tolist()) if not fine]

    def _scheduler_for(self, step: Denoise) -> Any:
        if not 0 <= step.from_ < step.to <= step.steps:
            raise violation(f"denoise steps {step.from_} to {step.to} of {step.steps}")
        if step.from_ == 0:
            self._scheduler = make_scheduler(step.scheduler, self.model.scheduler_config)
            self._plan = (step.scheduler, step.steps)
            try:
                self._scheduler.set_timesteps(step.steps, device=self.model.device)
            except ValueError as problem:
                raise invalid("steps", str(problem)) from problem
        elif self._plan != (step.scheduler, step.steps) or self._reached != step.from_:
            # Multistep schedulers remember earlier steps: latents alone do not continue them.
            raise violation(f"continue at step {step.from_} after step {self._reached}")
        return self._scheduler


# --- text ---------------------------------------------------------------------------------------


def encode_text(model: LoadedModel, text: str) -> torch.Tensor:
    """Conditioning of one text: padded to the encoder's length, cut where it is longer."""
    tokenizer = model.tokenizer
    tokens = tokenizer(
        [text],
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    mask = None
    if getattr(model.text_encoder.config, "use_attention_mask", False):
        mask = tokens.attention_mask.to(model.device)
    hidden: torch.Tensor = model.text_encoder(
        tokens.input_ids.to(model.device), attention_mask=mask
    )[0]
    return hidden.to(devices.TORCH_DTYPE[model.numerics.dtype])


# --- schedulers ---------------------------------------------------------------------------------


def make_scheduler(plan: SchedulerPlan, own_config: dict[str, Any]) -> Any:
    """The class of this name with the model's configuration and the plan's values on top."""
    kind: Any = getattr(diffusers.schedulers, plan.class_, None)
    # The name of a scheduler whose own needs are not installed leads to a placeholder class.
    known = inspect.isclass(kind) and issubclass(kind, SchedulerMixin)
    if not known:
        raise invalid("scheduler", f"diffusers {diffusers.__version__} has no {plan.class_}")
    unknown = plan.config.keys() - inspect.signature(kind).parameters.keys()
    if unknown:
        raise invalid("scheduler", f"{plan.class_} has no {', '.join(sorted(unknown))}")
    try:
        return kind.from_config(dict(own_config), **plan.config)
    except (ValueError, TypeError, NotImplementedError, ImportError) as problem:
        raise invalid("scheduler", f"{plan.class_} refuses its settings: {problem}") from problem


def step_arguments(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    """What some schedulers take beside the usual: no extra noise, and the source of any noise."""
    takes = inspect.signature(scheduler.step).parameters
    extra = {"eta": 0.0, "generator": generators if len(generators) > 1 else generators[0]}
    return {name: value for name, value in extra.items() if name in takes}


def timesteps_of_each_step(scheduler: Any, steps: int) -> list[list[torch.Tensor]]:
    """A schedule cut into the steps that were asked for.

    Second-order schedulers call the model twice a step, except in the last; a few start with some
    extra calls, which belong to the first step.
    """
    times = list(scheduler.timesteps)
    order = scheduler.order
    surplus = max(len(times) - steps * order, 0)
    ends = [min(surplus + number * order, len(times)) for number in range(1, steps + 1)]
    starts = [0, *ends[:-1]]
    return [times[start:end] for start, end in zip(starts, ends, strict=True)]


# --- measuring ----------------------------------------------------------------------------------


def measure(
    source: ModelSource,
    device: str,
    candidates: Sequence[Numerics],
    size: tuple[int, int],
    threads: int,
) -> list[Measurement]:
    """Time one guided denoise step of one picture under each candidate, on a unet of its own."""
    folder = Path(source.folder)
    models.check_family(folder)
    scale = models.pixels_per_latent(models.read_json(folder / "vae" / "config.json"))
    results: list[Measurement] = []
    best_first_ms: float | None = None
    for numerics in candidates:
        devices.use_threads(numerics, threads)
        unet = models.build_unet(folder / "unet", devices.find(device, numerics), numerics)
        arguments = denoise_arguments(unet, size[0] // scale, size[1] // scale)
        first_ms = time_call(unet, arguments)
        if best_first_ms is not None and first_ms > HOPELESS * best_first_ms:
            continue
        best_first_ms = first_ms if best_first_ms is None else min(best_first_ms, first_ms)
        median_ms = statistics.median(time_call(unet, arguments) for _ in range(TIMED_CALLS))
        results.append(Measurement(numerics, median_ms))
    return results


def denoise_arguments(unet: Any, width: int, height: int) -> dict[str, torch.Tensor]:
    """Inputs of the shape of one guided step; the values do not change the time."""
    noise = torch.Generator("cpu").manual_seed(0)
    shapes = {
        "sample": (2, unet.config.in_channels, height, width),
        "encoder_hidden_states": (2, 77, unet.config.cross_attention_dim),
    }
    return {
        name: torch.randn(shape, generator=noise, dtype=unet.dtype).to(unet.device)
        for name, shape in shapes.items()
    } | {"timestep": torch.tensor(500, device=unet.device)}


def time_call(unet: Any, arguments: dict[str, torch.Tensor]) -> float:
    """Milliseconds."""
    devices.wait(unet.device)
    began = time.perf_counter()
    unet(**arguments, return_dict=False)
    devices.wait(unet.device)
    return (time.perf_counter() - began) * 1000


def invalid(field: str, message: str) -> WorkerError:
    return WorkerError(ErrorCode.INFERENCE_INVALID, f"{field}: {message}", [Detail(field, message)])


def violation(message: str) -> WorkerError:
    return WorkerError(ErrorCode.PROTOCOL_VIOLATION, message)
