"""What the loop needs from an engine, and what it lends to one while it works.

An engine computes and knows nothing of lines, ids or threads. `torch_engine` is the real one; the
tests have another without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .errors import WorkerError
from .messages import (
    AnyPlanStep,
    Measurement,
    ModelSource,
    Numerics,
    Phase,
    RunItem,
    RunTimings,
    Usage,
    WorkerDevice,
)


class Cancelled(Exception):
    """Nobody waits for this work any more. Engines let it pass, and leave nothing half-changed."""


class Watch(Protocol):
    """Somebody to tell how far the work is, who may answer that it should stop."""

    def progress(self, phase: Phase, step: int, steps: int, step_ms: float) -> None:
        """One unit of a phase is behind us. Raises `Cancelled` when no item is wanted any more."""

    def check(self) -> None:
        """Look at the cancel flags only. Raises `Cancelled` likewise."""


class RunWatch(Watch, Protocol):
    """A watch over several items, each of which may end before the others."""

    def wanted(self, index: int) -> bool:
        """Whether this item has neither failed nor been cancelled."""

    def image(self, index: int, size: tuple[int, int, int], crc32c: int) -> None:
        """A picture of (width, height, channels) lies at the start of the item's slot."""

    def failed(self, index: int, error: WorkerError) -> None:
        """This item ends here; the others go on. Raises `Cancelled` when none is left."""


class Engine(Protocol):
    """Every method may raise; `errors.classify` finds the word for it."""

    def versions(self) -> dict[str, str]:
        """The libraries that decide what the pixels are."""

    def backends(self) -> list[str]:
        """Kinds of device that these libraries were built for, without touching one."""

    def probe_devices(self) -> list[WorkerDevice]:
        """What is really there."""

    def load(self, source: ModelSource, device: str, numerics: Numerics, watch: Watch) -> int:
        """Put a model on a device and return its bytes there, or leave everything as it was."""

    def unload(self, model: str) -> int:
        """Take a model off its device and return the bytes that came back."""

    def measure(
        self,
        source: ModelSource,
        device: str,
        candidates: Sequence[Numerics],
        size: tuple[int, int],
    ) -> list[Measurement]:
        """Time one denoise step under each candidate at (width, height); keeps what is loaded."""

    def run(
        self,
        model: str,
        device: str,
        items: Sequence[RunItem],
        steps: Sequence[AnyPlanStep],
        watch: RunWatch,
    ) -> RunTimings:
        """Draw all items as one batch, reporting through the watch."""

    def usage(self) -> Usage:
        """Memory held now."""
