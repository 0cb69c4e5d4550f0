"""What torch sees, and what each device can compute.

Touches a device only in `probe`. Chooses nothing: which device and how many threads are given.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from ..error_codes import ErrorCode
from ..errors import WorkerError
from ..messages import Dtype, Numerics, WorkerDevice

TORCH_DTYPE = {
    Dtype.FLOAT32: torch.float32,
    Dtype.FLOAT16: torch.float16,
    Dtype.BFLOAT16: torch.bfloat16,
}
CPU_DTYPES = [Dtype.FLOAT32, Dtype.BFLOAT16]
FIRST_BFLOAT16_CAPABILITY = (8, 0)  # older cards emulate it, slower than float32


def backends() -> list[str]:
    """Kinds of device that this build of torch was made for; touches none of them."""
    return ["cpu", card_backend()] if torch.backends.cuda.is_built() else ["cpu"]


def card_backend() -> str:
    """AMD's cards answer to `torch.cuda` too."""
    return "cuda" if torch.version.hip is None else "rocm"


def probe() -> list[WorkerDevice]:
    """The processor, and every card that torch can open."""
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    return [probe_cpu(), *(probe_card(index) for index in cards)]


def probe_cpu() -> WorkerDevice:
    return WorkerDevice(
        id="cpu",
        name=cpu_name(),
        backend="cpu",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        capability=torch.backends.cpu.get_cpu_capability(),
        dtypes=CPU_DTYPES,
    )


def cpu_name() -> str:
    """As the kernel writes it, where it does."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "CPU"
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else "CPU"


def probe_card(index: int) -> WorkerDevice:
    facts = torch.cuda.get_device_properties(index)
    capability = (facts.major, facts.minor)
    dtypes = [Dtype.FLOAT32, Dtype.FLOAT16]
    if capability >= FIRST_BFLOAT16_CAPABILITY:
        dtypes.append(Dtype.BFLOAT16)
    return WorkerDevice(
        id=f"cuda:{index}",
        name=facts.name,
        backend=card_backend(),
        uuid=f"GPU-{facts.uuid}",  # as NVML writes it
        memory_bytes=facts.total_memory,
        capability=f"{facts.major}.{facts.minor}",
        dtypes=dtypes,
    )


def find(device: str, numerics: Numerics) -> torch.device:
    """The device of this id, if it is here and computes in this precision."""
    here = {facts.id: facts for facts in probe()}
    if device not in here:
        raise WorkerError(
            ErrorCode.DEVICE_NOT_FOUND, f"find device {device}; torch sees {', '.join(here)}"
        )
    if numerics.dtype not in here[device].dtypes:
        able = ", ".join(here[device].dtypes)
        raise WorkerError(
            ErrorCode.DEVICE_UNSUPPORTED,
            f"compute in {numerics.dtype} on {device}, which can do {able}",
        )
    return torch.device(device)


def use_threads(numerics: Numerics, allowed: int) -> None:
    """Threads of one operation. Refused rather than lowered: their number changes pixels."""
    if not 1 <= numerics.threads <= allowed:
        raise WorkerError(
            ErrorCode.PROTOCOL_VIOLATION,
            f"use {numerics.threads} threads where the budget is {allowed}",
        )
    if torch.get_num_threads() != numerics.threads:
        torch.set_num_threads(numerics.threads)


def wait(device: torch.device) -> None:
    """Until the device has done what it was told, so that a clock means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
