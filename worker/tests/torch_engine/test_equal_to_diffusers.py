"""Our denoise loop and diffusers' own pipeline make the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atelier_worker.messages import (
    Decode,
    Denoise,
    Dtype,
    EncodePrompt,
    MakeLatents,
    MemoryFormat,
    Numerics,
    SchedulerPlan,
)

from .conftest import DEMO
from .drawing import Reference, draw, loaded, plan, worst

PROMPT = "a red apple on a blue background"

SCHEDULERS = {
    "ddim": SchedulerPlan("DDIMScheduler"),
    "euler": SchedulerPlan("EulerDiscreteScheduler"),
    "euler a": SchedulerPlan("EulerAncestralDiscreteScheduler"),
    "dpm++ 2m": SchedulerPlan("DPMSolverMultistepScheduler"),
    "dpm++ 2m karras": SchedulerPlan("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++ 2m sde": SchedulerPlan(
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}
    ),
    "unipc": SchedulerPlan("UniPCMultistepScheduler"),
    "ddpm": SchedulerPlan("DDPMScheduler"),
    "lcm": SchedulerPlan("LCMScheduler"),
    "pndm, with a surplus first call": SchedulerPlan("PNDMScheduler"),
    "heun, with two calls a step": SchedulerPlan("HeunDiscreteScheduler"),
    "kdpm2 a, with noise and two calls a step": SchedulerPlan("KDPM2AncestralDiscreteScheduler"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_scheduler_draws_the_same_picture(tiny: Path, name: str) -> None:
    scheduler = SCHEDULERS[name]
    size, steps = (32, 32), 5
    ours = draw(loaded(tiny), plan(PROMPT, size=size, steps=steps, scheduler=scheduler), [3])
    theirs = Reference.load(tiny).draw(PROMPT, [3], scheduler=scheduler, size=size, steps=steps)
    assert worst(ours, theirs) == 0
    assert np.ptp(ours[0]) > 0


@pytest.mark.parametrize(
    "numerics",
    [
        Numerics(Dtype.FLOAT32, MemoryFormat.CHANNELS_LAST, 1),
        Numerics(Dtype.FLOAT32, MemoryFormat.CONTIGUOUS, 2),
        Numerics(Dtype.BFLOAT16, MemoryFormat.CHANNELS_LAST, 1),
    ],
    ids=lambda numerics: f"{numerics.dtype}-{numerics.memory_format}-{numerics.threads}",
)
def test_the_numerics_mean_what_they_mean_to_diffusers(tiny: Path, numerics: Numerics) -> None:
    scheduler = SCHEDULERS["ddim"]
    ours = draw(loaded(tiny, numerics), plan(PROMPT, size=(32, 32), scheduler=scheduler), [3])
    theirs = Reference.load(tiny, numerics).draw(
        PROMPT, [3], scheduler=scheduler, size=(32, 32), steps=3
    )
    assert worst(ours, theirs) == 0


def test_a_batch_has_one_generator_a_picture(tiny: Path) -> None:
    scheduler = SCHEDULERS["euler a"]  # takes noise in every step
    seeds = [1, 2**63 - 1, 2**64 - 1]
    ours = draw(loaded(tiny), plan(PROMPT, size=(48, 32), scheduler=scheduler), seeds)
    theirs = Reference.load(tiny).draw(PROMPT, seeds, scheduler=scheduler, size=(48, 32), steps=3)
    assert worst(ours, theirs) == 0
    assert worst(ours[:1], ours[1:2]) > 0


@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.5, 12.0])
def test_guidance_begins_above_one(tiny: Path, guidance: float) -> None:
    steps = plan(PROMPT, size=(32, 32), guidance=guidance)
    theirs = Reference.load(tiny).draw(
        PROMPT, [3], scheduler=SCHEDULERS["ddim"], size=(32, 32), steps=3, guidance=guidance
    )
    assert worst(draw(loaded(tiny), steps, [3]), theirs) == 0


@pytest.mark.parametrize(
    ("prompt", "negative"), [("", ""), (PROMPT, "blurry, green"), ("apple " * 200, "pear " * 200)]
)
def test_prompts_are_encoded_and_cut_alike(tiny: Path, prompt: str, negative: str) -> None:
    steps = plan(prompt, size=(32, 32))
    steps[0] = EncodePrompt(prompt, negative)
    theirs = Reference.load(tiny).draw(
        prompt,
        [3],
        scheduler=SCHEDULERS["ddim"],
        size=(32, 32),
        steps=3,
        negative_prompt=negative,
    )
    assert worst(draw(loaded(tiny), steps, [3]), theirs) == 0


@pytest.mark.parametrize("name", ["dpm++ 2m", "unipc", "euler a", "heun, with two calls a step"])
def test_a_schedule_may_be_drawn_in_two_parts(tiny: Path, name: str) -> None:
    scheduler = SCHEDULERS[name]
    made = loaded(tiny)
    whole = draw(made, plan(PROMPT, size=(32, 32), steps=5, scheduler=scheduler), [3])
    parts = draw(
        made,
        [
            EncodePrompt(PROMPT, ""),
            MakeLatents(32, 32),
            Denoise(scheduler, 5, 4.0, 0, 2),
            Denoise(scheduler, 5, 4.0, 2, 5),
            Decode(),
        ],
        [3],
    )
    assert worst(whole, parts) == 0


@pytest.mark.parametrize("name", ["ddim", "dpm++ 2m"])
def test_the_demo_model_draws_what_diffusers_draws(name: str) -> None:
    prompt = "a 3d render of a red apple on a blue background"
    numerics = Numerics(Dtype.FLOAT32, MemoryFormat.CHANNELS_LAST, 1)
    steps = plan(prompt, size=(128, 128), steps=6, scheduler=SCHEDULERS[name])
    ours = draw(loaded(DEMO, numerics), steps, [3])
    theirs = Reference.load(DEMO, numerics).draw(
        prompt, [3], scheduler=SCHEDULERS[name], size=(128, 128), steps=6
    )
    assert worst(ours, theirs) <= 1
