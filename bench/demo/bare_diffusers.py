"""A bare diffusers loop: the rival of `bench/demo`, and the reference that our pixels must equal.

Uses StableDiffusionPipeline as its own documentation does, nothing of Atelier, and prints one JSON
object with the time of every step and of every whole picture.

    python bench/demo/bare_diffusers.py models/demo --prompt "a red apple" --seed 3 --png apple.png
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw with a bare diffusers pipeline and time it.")
    parser.add_argument("model", type=Path, help="a folder with model_index.json")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--scheduler", help="a class of diffusers; the model's own without it")
    parser.add_argument(
        "--scheduler-config", type=json.loads, default={}, help="JSON on top of the model's own"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--memory-format", choices=["contiguous", "channels_last"], default="contiguous"
    )
    parser.add_argument("--warmups", type=int, default=1, help="pictures drawn before timing")
    parser.add_argument("--repeats", type=int, default=5, help="pictures that are timed")
    parser.add_argument(
        "--on-demand",
        action="store_true",
        help="instead: one picture, seed + i, for each line on stdin, its timing as a line of JSON",
    )
    parser.add_argument("--png", type=Path, help="where to save the last picture")
    return parser.parse_args()


def build(asked: argparse.Namespace) -> Any:
    import diffusers
    import torch

    torch.set_num_threads(asked.threads)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        asked.model,
        dtype=getattr(torch, asked.dtype),
        use_safetensors=True,
        local_files_only=True,
        safety_checker=None,
    ).to(asked.device)
    if asked.memory_format == "channels_last":
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if asked.scheduler:
        kind = getattr(diffusers, asked.scheduler)
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **asked.scheduler_config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, asked: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """One picture, and when each step of it ended."""
    import torch

    def wait() -> None:
        if asked.device.startswith("cuda"):
            torch.cuda.synchronize()

    ends: list[float] = []

    def after_step(_pipeline: Any, _step: int, _timestep: Any, tensors: Any) -> Any:
        wait()
        ends.append(time.perf_counter())
        return tensors

    wait()
    began = time.perf_counter()
    image = pipeline(
        asked.prompt,
        negative_prompt=asked.negative_prompt,
        width=asked.width,
        height=asked.height,
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance,
        generator=torch.Generator("cpu").manual_seed(asked.seed),
        callback_on_step_end=after_step,
    ).images[0]
    total_ms = (time.perf_counter() - began) * 1000
    # The first step cannot be told from encoding the prompt, so it is no difference of two ends.
    step_ms = [(end - start) * 1000 for start, end in itertools.pairwise(ends)]
    return image, {"total_ms": total_ms, "step_ms": step_ms}


def main() -> None:
    started = time.perf_counter()
    asked = arguments()
    import diffusers
    import torch

    imported = time.perf_counter()
    pipeline = build(asked)
    built = time.perf_counter()
    for _ in range(asked.warmups):
        draw(pipeline, asked)
    if asked.on_demand:
        for _ in sys.stdin:
            _, timing = draw(pipeline, asked)
            asked.seed += 1
            sys.stdout.write(json.dumps(timing) + "\n")
            sys.stdout.flush()
        return
    repeats = []
    image = None
    for _ in range(asked.repeats):
        image, timing = draw(pipeline, asked)
        repeats.append(timing)
    if asked.png is not None and image is not None:
        image.save(asked.png)
    every_step = [step for repeat in repeats for step in repeat["step_ms"]]
    result = {
        "settings": {name: str(value) for name, value in vars(asked).items()},
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        "import_ms": (imported - started) * 1000,
        "build_ms": (built - imported) * 1000,
        "median_step_ms": statistics.median(every_step) if every_step else None,
        "median_total_ms": statistics.median(r["total_ms"] for r in repeats) if repeats else None,
        "repeats": repeats,
    }
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
