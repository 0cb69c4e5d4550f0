"""The messages of the worker protocol, in the order of `crates/protocol/src/worker.rs`.

That file is the source of truth; the shape test and the shared vectors keep this one equal to it.
Plain data: no behaviour, no I/O, no torch. Unknown fields are refused in both directions, and what
is absent in Rust is left out here too instead of being sent as null.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta, Struct, field

from .error_codes import ErrorCode

PROTOCOL = 1
"""Exact match or refusal: both halves ship together, so tolerance would only hide mistakes."""
MAX_LINE_BYTES = 1 << 20
"""Longest line in bytes, in either direction, without its newline."""
MAX_BAD_LINES = 100
"""Bad lines in a row after which the worker is ended."""
EXIT_VERSION_MISMATCH = 64
"""Exit status of a worker that was welcomed with another protocol number."""
EXIT_BAD_LINES = 65
"""Exit status of a worker that gave up after `bad_lines` unreadable lines in a row."""

U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
# msgspec has no bounds above 2^63, so numbers beyond u64 are the one thing that only Rust refuses.
U64 = Annotated[int, Meta(ge=0)]


class Part(Struct, forbid_unknown_fields=True):
    """What lies in a message."""


class Message(Part, tag_field="type"):
    """Any line, told apart by its `type`."""


# --- to the worker ------------------------------------------------------------------------------


class Welcome(Message, tag="welcome"):
    """The answer to `hello`. Heavy libraries are imported after this, then comes `ready`."""

    protocol: U32
    limits: Limits
    budget: Budget


class ProbeDevices(Message, tag="probe_devices"):
    """Ask what the libraries see. The only message that may touch devices before a `load`."""

    id: U64


class Load(Message, tag="load", omit_defaults=True, kw_only=True):
    """Put a model on a device. Answered by `loaded`, or `failed` with everything rolled back."""

    id: U64
    work: Work | None = None
    """The work that waits for this, where there is one: `progress` and `cancel` name it."""
    model: ModelSource
    device: str
    numerics: Numerics


class Unload(Message, tag="unload"):
    """Take a model off its device. Answered by `unloaded`."""

    id: U64
    model: str


class Measure(Message, tag="measure"):
    """Time one denoise step under each candidate. What is loaded stays loaded."""

    id: U64
    model: ModelSource
    device: str
    candidates: list[Numerics]
    width: U32
    height: U32


class Run(Message, tag="run"):
    """Draw. Every number was filled in by the planner."""

    run: UUID
    model: str
    device: str
    items: list[RunItem]
    steps: list[AnyPlanStep]


class Cancel(Message, tag="cancel"):
    """Stop this work at the next step. Acknowledged by `failed` with `processing.cancelled`."""

    work: Work


class Shutdown(Message, tag="shutdown"):
    """End after what is running. Answered by `bye`."""


ToWorker = Welcome | ProbeDevices | Load | Unload | Measure | Run | Cancel | Shutdown


# --- from the worker ----------------------------------------------------------------------------


class Hello(Message, tag="hello"):
    """The first line, before any heavy import."""

    protocol: U32
    build: str
    python: str
    pid: U32
    schema_hash: str


class Ready(Message, tag="ready"):
    """Imports are done and `run` may come. A message, never a pause."""

    versions: dict[str, str]
    backends: list[str]
    max_inflight: U32


class Devices(Message, tag="devices"):
    """Answer to `probe_devices`."""

    re: U64
    devices: list[WorkerDevice]


class Loaded(Message, tag="loaded"):
    """Answer to `load`: bytes on the device and the time it took."""

    re: U64
    model: str
    bytes: U64
    load_ms: float


class Unloaded(Message, tag="unloaded"):
    """Answer to `unload`: bytes that came back."""

    re: U64
    model: str
    bytes: U64


class Measured(Message, tag="measured"):
    """Answer to `measure`, one entry a candidate that ran, in the order asked."""

    re: U64
    results: list[Measurement]


class Started(Message, tag="started"):
    """Work on this item has begun."""

    work: Work


class Progress(Message, tag="progress"):
    """One unit of a phase is behind us."""

    work: Work
    phase: Phase
    step: U32
    steps: U32
    step_ms: float


class Image(Message, tag="image"):
    """A picture lies in its slot. The checksum covers exactly `bytes` bytes from `offset`."""

    work: Work
    slot: str
    offset: U64
    bytes: U64
    width: U32
    height: U32
    channels: U32
    crc32c: U32


class Done(Message, tag="done"):
    """This item is finished and its image was sent."""

    work: Work
    timings: RunTimings


class Failed(Message, tag="failed", omit_defaults=True, kw_only=True):
    """A request (`re`) or an item (`work`) failed; exactly one of the two is given."""

    re: U64 | None = None
    work: Work | None = None
    step: U32 | None = None
    error: Error


class Usage(Message, tag="usage", omit_defaults=True):
    """Memory held by the worker: resident host bytes and bytes on its device."""

    rss_bytes: U64
    device_bytes: U64 | None = None


class Bye(Message, tag="bye"):
    """Last line of an orderly end."""


FromWorker = (
    Hello
    | Ready
    | Devices
    | Loaded
    | Unloaded
    | Measured
    | Started
    | Progress
    | Image
    | Done
    | Failed
    | Usage
    | Bye
)


# --- the parts of messages ----------------------------------------------------------------------


class Work(Struct, frozen=True, forbid_unknown_fields=True):
    """The fence around work: an answer counts only while all three are current."""

    run: UUID
    job: UUID
    attempt: U32


class Limits(Part):
    """Rules for lines, from the orchestrator."""

    line_bytes: U64
    bad_lines: U32


class Budget(Part):
    """What the worker may use: workers × threads never exceed the cores."""

    threads: U32


class ModelSource(Part):
    """Where a model's files are: a folder with `model_index.json`."""

    model: str
    folder: str


class Numerics(Part):
    """How numbers are computed. Each field changes pixels; nothing here switches them by itself."""

    dtype: Dtype
    memory_format: MemoryFormat
    threads: U32


class Dtype(StrEnum):
    """The precision in which a model computes."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class MemoryFormat(StrEnum):
    """How the four-dimensional weights of UNet and VAE lie in memory."""

    CONTIGUOUS = "contiguous"
    CHANNELS_LAST = "channels_last"


class Measurement(Part):
    """One candidate and its median time for one denoise step."""

    numerics: Numerics
    step_ms: float


class RunItem(Part):
    """One picture of a run. Items of one run are computed as one batch, in this order."""

    job: UUID
    attempt: U32
    seed: U64
    slot: Slot


class Slot(Part):
    """A sealed memory file of the orchestrator, opened by path, filled with raw pixels."""

    slot: str
    path: str
    bytes: U64


class PlanStep(Part, tag_field="step"):
    """One step of a plan, already validated."""


class EncodePrompt(PlanStep, tag="encode_prompt"):
    """Text to conditioning. The negative prompt is used where guidance needs one."""

    prompt: str
    negative_prompt: str


class MakeLatents(PlanStep, tag="make_latents"):
    """Noise for every item, drawn as diffusers does: torch's CPU generator, the run's precision."""

    width: U32
    height: U32


class Denoise(PlanStep, tag="denoise"):
    """Steps `from` (included) to `to` (excluded) of a schedule of `steps`."""

    scheduler: SchedulerPlan
    steps: U32
    guidance_scale: float
    from_: U32 = field(name="from")
    to: U32


class Decode(PlanStep, tag="decode"):
    """Latents to RGB pixels in the items' slots."""


AnyPlanStep = EncodePrompt | MakeLatents | Denoise | Decode


class SchedulerPlan(Part):
    """A diffusers scheduler class and values on top of the model's own configuration for it."""

    class_: str = field(name="class")
    config: dict[str, Any] = {}


class WorkerDevice(Part, omit_defaults=True, kw_only=True):
    """A device as the worker's PyTorch sees it."""

    id: str
    name: str
    backend: str
    uuid: str | None = None
    memory_bytes: U64 | None = None
    capability: str | None = None
    dtypes: list[Dtype]


class Phase(StrEnum):
    """The part of the work that a `progress` counts."""

    LOAD = "load"
    ENCODE = "encode"
    COMPILE = "compile"
    DENOISE = "denoise"
    DECODE = "decode"


class RunTimings(Part):
    """Milliseconds spent in each phase of a run."""

    encode_ms: float
    denoise_ms: float
    decode_ms: float


class Error(Part, omit_defaults=True):
    """An error as the worker knows it; hint and advice come from the table on the other side."""

    code: ErrorCode
    message: str
    details: list[Detail] = []


class Detail(Part):
    """One thing that is wrong, and where."""

    field: str
    message: str
