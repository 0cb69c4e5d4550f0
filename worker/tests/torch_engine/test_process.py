"""The real worker process with the demo model: a prompt in, a picture out."""

from __future__ import annotations

import os
from pathlib import Path

import google_crc32c
import numpy as np

from atelier_worker import __version__
from atelier_worker.error_codes import ErrorCode
from atelier_worker.messages import (
    Bye,
    Cancel,
    Devices,
    Done,
    Dtype,
    Failed,
    Hello,
    Image,
    Load,
    Loaded,
    MemoryFormat,
    ModelSource,
    Numerics,
    Phase,
    ProbeDevices,
    Progress,
    Ready,
    Shutdown,
    Started,
    Usage,
)
from orchestrator import WELCOME, plan, run_of, slots, work, worker

from .conftest import DEMO

SIZE = (128, 128)
BYTES = 128 * 128 * 3
STEPS = 12


def test_a_red_apple_on_a_blue_background(tmp_path: Path) -> None:
    arguments = ["--parent", str(os.getpid())]
    with worker(tmp_path, "atelier_worker", arguments) as real, slots([BYTES]) as made:
        assert real.hear(Hello).build == __version__
        real.say(WELCOME)
        assert real.hear(Ready).versions.keys() == {"torch", "diffusers", "transformers"}
        real.say(ProbeDevices(1))
        assert "cpu" in [device.id for device in real.hear(Devices).devices]
        numerics = Numerics(Dtype.FLOAT32, MemoryFormat.CHANNELS_LAST, 1)
        source = ModelSource("demo", str(DEMO))
        real.say(Load(id=2, work=work(1), model=source, device="cpu", numerics=numerics))
        before, loaded = real.hear_until(Loaded)
        assert [m.phase for m in before if isinstance(m, Progress)] == [Phase.LOAD] * 4
        assert loaded.bytes > 24_000_000 * 4 * 0.9
        real.hear(Usage)

        steps = plan(
            "a 3d render of a red apple on a blue background", size=SIZE, steps=STEPS, guidance=4.0
        )
        real.say(run_of(steps, made))
        before, _ = real.hear_until(Done)
        assert isinstance(before[0], Started)
        (image,) = (m for m in before if isinstance(m, Image))
        ((descriptor, _),) = made
        raw = os.pread(descriptor, BYTES, 0)
        assert image.crc32c == google_crc32c.value(raw)
        pixels = np.frombuffer(raw, np.uint8).reshape(128, 128, 3).astype(int)
        border = np.ones((128, 128), bool)
        border[6:-6, 6:-6] = False
        assert np.abs(pixels[border].mean(axis=0) - (40, 90, 220)).max() <= 20
        red, green, blue = pixels[48:80, 48:80].reshape(-1, 3).mean(axis=0)
        assert red - max(green, blue) >= 80
        real.hear(Usage)

        real.say(run_of(steps, made))
        real.hear(Started)
        real.hear_until(Progress)
        real.say(Cancel(work(1)))
        _, failed = real.hear_until(Failed)
        assert failed.error.code == ErrorCode.PROCESSING_CANCELLED
        real.hear(Usage)
        real.say(Shutdown())
        real.hear(Bye)
        assert real.exit_status() == 0
        warned = [line for line in real.stderr.read_text().splitlines() if "arning" in line]
        assert warned == []
