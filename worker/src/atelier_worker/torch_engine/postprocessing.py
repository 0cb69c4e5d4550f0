"""From latents to raw pixels in a slot. Encodes no image format: the orchestrator does."""

from __future__ import annotations

import os

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch

from ..error_codes import ErrorCode
from ..errors import WorkerError
from ..messages import RunItem, Slot
from .model import LoadedModel

CHANNELS = 3

Pixels = npt.NDArray[np.uint8]


def check_slots(items: list[RunItem], width: int, height: int) -> None:
    """Before anything is computed: every picture will have room."""
    needed = width * height * CHANNELS
    for item in items:
        if item.slot.bytes < needed:
            raise slot_problem(item.slot, f"{needed} bytes do not fit its {item.slot.bytes}")


def to_pixels(model: LoadedModel, latents: torch.Tensor) -> list[Pixels | None]:
    """(height, width, channels) of each item as diffusers' VaeImageProcessor rounds them.

    None where the autoencoder made something that is no number.
    """
    config = model.vae.config
    scaled = latents / config.scaling_factor
    if config.shift_factor is not None:
        scaled = scaled + config.shift_factor
    decoded: torch.Tensor = model.vae.decode(scaled, return_dict=False)[0]
    images = (decoded * 0.5 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
    return [
        (image * 255).round().astype(np.uint8) if np.isfinite(image).all() else None
        for image in images
    ]


def write(slot: Slot, pixels: Pixels) -> int:
    """Fill the start of a slot and return the checksum of what was written.

    The slot is opened by path and written, never mapped or resized: it belongs to the orchestrator.
    """
    raw = np.ascontiguousarray(pixels).tobytes()
    try:
        descriptor = os.open(slot.path, os.O_WRONLY)
    except OSError as problem:
        raise slot_problem(slot, str(problem)) from problem
    try:
        room = os.fstat(descriptor).st_size
        if room < len(raw):
            raise slot_problem(slot, f"{len(raw)} bytes do not fit its {room}")
        written = 0
        while written < len(raw):
            written += os.pwrite(descriptor, memoryview(raw)[written:], written)
    except OSError as problem:
        raise slot_problem(slot, str(problem)) from problem
    finally:
        os.close(descriptor)
    return int(google_crc32c.value(raw))


def slot_problem(slot: Slot, reason: str) -> WorkerError:
    return WorkerError(ErrorCode.PROTOCOL_VIOLATION, f"write slot {slot.slot}: {reason}")
