"""What the torch engine refuses, reports and leaves behind."""

from __future__ import annotations

import gc
import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier_worker.engine import Cancelled
from atelier_worker.error_codes import ErrorCode
from atelier_worker.errors import WorkerError, classify
from atelier_worker.messages import (
    AnyPlanStep,
    Decode,
    Denoise,
    Dtype,
    EncodePrompt,
    MakeLatents,
    MemoryFormat,
    ModelSource,
    Numerics,
    Phase,
    RunItem,
    SchedulerPlan,
    Slot,
)
from atelier_worker.torch_engine import TorchEngine
from atelier_worker.torch_engine import inference as torch_inference
from orchestrator import job, slots

from .drawing import FLOAT32, Recorder, draw, engine, loaded, plan, worst

Change = Callable[[str, Callable[[Path], Any]], Path]

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
SIZE = (32, 32)


def refusal(act: Callable[[], object]) -> WorkerError:
    """The error that the loop would send."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (its class is what `classify` decides)
        act()
    assert isinstance(caught.value, Exception)
    return classify(caught.value)


def load_refusal(folder: Path) -> WorkerError:
    return refusal(lambda: loaded(folder))


def tensors_changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Rewrites one file of weights."""

    def act(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return act


def json_changed(**values: Any) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return act


# --- loading ------------------------------------------------------------------------------------


def test_a_load_reports_each_component_and_the_bytes_of_all(tiny: Path) -> None:
    made, watch = engine(), Recorder()
    size = made.load(ModelSource("m", str(tiny)), "cpu", FLOAT32, watch)
    assert watch.told == [(Phase.LOAD, step, 4) for step in (1, 2, 3, 4)]
    stored = sum(
        t.numel() for part in (UNET, VAE, TEXT_ENCODER) for t in load_file(tiny / part).values()
    )
    positions = 77 * 8  # one buffer of 64-bit numbers is computed
    assert size == stored * 4 + positions
    half = Numerics(Dtype.BFLOAT16, MemoryFormat.CONTIGUOUS, 1)
    assert (
        engine().load(ModelSource("m", str(tiny)), "cpu", half, Recorder())
        == stored * 2 + positions
    )
    assert made.unload("m") == size


def test_unloading_lets_go_of_the_weights(tiny: Path) -> None:
    made = loaded(tiny)
    weights = weakref.ref(made._loaded["m"].unet.conv_in.weight)
    made.unload("m")
    assert weights() is None
    assert refusal(lambda: made.unload("m")).code == ErrorCode.PROTOCOL_VIOLATION


def test_loading_again_is_the_same_and_loading_otherwise_is_refused(tiny: Path) -> None:
    made = loaded(tiny)
    again = Recorder()
    assert made.load(ModelSource("m", str(tiny)), "cpu", FLOAT32, again) > 0
    assert again.told == []
    other = Numerics(Dtype.BFLOAT16, MemoryFormat.CONTIGUOUS, 1)
    error = refusal(lambda: made.load(ModelSource("m", str(tiny)), "cpu", other, Recorder()))
    assert error.code == ErrorCode.PROTOCOL_VIOLATION


def test_a_cancelled_load_leaves_nothing_behind(tiny: Path) -> None:
    made = engine()
    watch = Recorder(stop_after=lambda phase, step: (phase, step) == (Phase.LOAD, 3))
    with pytest.raises(Cancelled):
        made.load(ModelSource("m", str(tiny)), "cpu", FLOAT32, watch)
    assert refusal(lambda: made.unload("m")).code == ErrorCode.PROTOCOL_VIOLATION
    gc.collect()
    assert not [m for m in gc.get_objects() if type(m).__name__ == "UNet2DConditionModel"]


def test_names_of_older_releases_are_understood(tiny: Path, changed: Change) -> None:
    def as_in_stable_diffusion_1_5(folder: Path) -> None:
        def old_text_encoder(tensors: dict[str, torch.Tensor]) -> None:
            for name in list(tensors):
                tensors[f"text_model.{name}"] = tensors.pop(name)
            tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]

        def old_autoencoder(tensors: dict[str, torch.Tensor]) -> None:
            old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
            for name in [name for name in tensors if "attentions" in name]:
                tensor = tensors.pop(name)
                for new_part, old_part in old.items():
                    if f".{new_part}." in name:
                        name = name.replace(new_part, old_part)
                        if name.endswith("weight"):
                            tensor = tensor[:, :, None, None]
                tensors[name] = tensor

        tensors_changed(old_text_encoder)(folder / TEXT_ENCODER)
        tensors_changed(old_autoencoder)(folder / VAE)

    old = changed(".", as_in_stable_diffusion_1_5)
    steps = plan("a red apple", size=SIZE)
    assert worst(draw(loaded(tiny), steps, [3]), draw(loaded(old), steps, [3])) == 0


@pytest.mark.parametrize("part", [UNET, VAE, TEXT_ENCODER])
def test_a_missing_tensor_is_named(changed: Change, part: str) -> None:
    gone = "conv_in.weight" if part == UNET else None
    names: list[str] = []

    def remove(tensors: dict[str, torch.Tensor]) -> None:
        names.append(gone or sorted(tensors)[0])
        del tensors[names[0]]

    error = load_refusal(changed(part, tensors_changed(remove)))
    assert error.code == ErrorCode.MODEL_UNREADABLE
    assert f"{names[0]} is missing" in error.message
    assert part in error.message


def test_a_tensor_that_is_left_over_is_named(changed: Change) -> None:
    folder = changed(UNET, tensors_changed(lambda t: t.update(surprise=torch.zeros(1))))
    error = load_refusal(folder)
    assert error.code == ErrorCode.MODEL_UNREADABLE
    assert "surprise is left over" in error.message


def test_a_tensor_of_another_shape_is_named(changed: Change) -> None:
    key = "conv_in.bias"
    folder = changed(UNET, tensors_changed(lambda t: t.update({key: torch.zeros(5)})))
    error = load_refusal(folder)
    assert error.code == ErrorCode.MODEL_UNREADABLE
    assert "conv_in.bias has shape (5,) and not (32,)" in error.message


@pytest.mark.parametrize("keep", [0, 7, 100, 10_000])
def test_a_file_that_was_cut_short_is_unreadable(changed: Change, keep: int) -> None:
    folder = changed(UNET, lambda path: os.truncate(path, keep))
    error = load_refusal(folder)
    assert error.code == ErrorCode.MODEL_UNREADABLE
    assert UNET in error.message


def test_a_header_that_lies_is_unreadable(changed: Change) -> None:
    def lie(path: Path) -> None:
        raw = path.read_bytes()
        path.write_bytes((2**40).to_bytes(8, "little") + raw[8:])

    assert load_refusal(changed(UNET, lie)).code == ErrorCode.MODEL_UNREADABLE


@pytest.mark.parametrize(
    "missing",
    ["model_index.json", UNET, "vae/config.json", "tokenizer", "scheduler/scheduler_config.json"],
)
def test_a_missing_file_is_unreadable(changed: Change, missing: str) -> None:
    def remove(path: Path) -> None:
        path.rename(path.with_name("elsewhere"))

    error = load_refusal(changed(missing, remove))
    assert error.code == ErrorCode.MODEL_UNREADABLE
    assert Path(missing).parts[0] in error.message


def test_a_pickle_is_never_opened(changed: Change) -> None:
    folder = changed(UNET, lambda path: path.rename(path.with_suffix(".bin")))
    error = load_refusal(folder)
    assert error.code == ErrorCode.MODEL_UNSUPPORTED
    assert "a pickle, which is never opened" in error.message


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline"),
        ("model_index.json", {"unet": ["diffusers", "UNet3DConditionModel"]}, "unet of"),
        ("model_index.json", {"vae": [None, None]}, "vae of"),
        ("unet/config.json", {"in_channels": 9}, "conv_in.weight has shape"),
    ],
)
def test_another_kind_of_model_is_refused(
    changed: Change, part: str, values: dict[str, Any], said: str
) -> None:
    error = load_refusal(changed(part, json_changed(**values)))
    assert error.code in (ErrorCode.MODEL_UNSUPPORTED, ErrorCode.MODEL_UNREADABLE)
    assert said in error.message


def test_an_inpainting_unet_cannot_draw_from_text(changed: Change) -> None:
    def act(folder: Path) -> None:
        json_changed(in_channels=9)(folder / "unet" / "config.json")
        wide = torch.zeros(32, 9, 3, 3)
        tensors_changed(lambda t: t.update({"conv_in.weight": wide}))(folder / UNET)

    error = load_refusal(changed(".", act))
    assert error.code == ErrorCode.MODEL_UNSUPPORTED
    assert "inpainting" in error.message


def test_devices_and_precisions_that_are_not_here_are_refused(tiny: Path) -> None:
    source = ModelSource("m", str(tiny))
    error = refusal(lambda: engine().load(source, "cuda:99", FLOAT32, Recorder()))
    assert error.code == ErrorCode.DEVICE_NOT_FOUND
    half = Numerics(Dtype.FLOAT16, MemoryFormat.CONTIGUOUS, 1)
    error = refusal(lambda: engine().load(source, "cpu", half, Recorder()))
    assert error.code == ErrorCode.DEVICE_UNSUPPORTED


def test_more_threads_than_the_budget_are_refused_and_not_lowered(tiny: Path) -> None:
    greedy = Numerics(Dtype.FLOAT32, MemoryFormat.CONTIGUOUS, 3)
    error = refusal(lambda: loaded(tiny, greedy))
    assert error.code == ErrorCode.PROTOCOL_VIOLATION
    assert "3 threads where the budget is 2" in error.message


def test_the_processor_is_always_found() -> None:
    (cpu,) = (device for device in engine().probe_devices() if device.id == "cpu")
    assert cpu.dtypes == [Dtype.FLOAT32, Dtype.BFLOAT16]
    assert cpu.memory_bytes
    assert cpu.memory_bytes > 1 << 30
    assert engine().usage().rss_bytes > 1 << 20


# --- drawing ------------------------------------------------------------------------------------


def run(made: TorchEngine, steps: list[AnyPlanStep], watch: Recorder | None = None) -> Recorder:
    """One picture, whose slot is thrown away."""
    watch = watch or Recorder()
    with slots([SIZE[0] * SIZE[1] * 3]) as ((_, slot),):
        made.run("m", "cpu", [RunItem(job(1), 1, 3, slot)], steps, watch)
    return watch


def test_a_run_reports_every_step(tiny: Path) -> None:
    watch = run(loaded(tiny), plan("a red apple", size=SIZE, steps=3))
    assert watch.told == [
        (Phase.ENCODE, 1, 1),
        (Phase.DENOISE, 1, 3),
        (Phase.DENOISE, 2, 3),
        (Phase.DENOISE, 3, 3),
        (Phase.DECODE, 1, 1),
    ]


def test_cancelling_stops_at_the_next_step_and_the_model_still_draws(tiny: Path) -> None:
    made = loaded(tiny)
    steps = plan("a red apple", size=SIZE, steps=5)
    before = draw(made, steps, [3])
    watch = Recorder(stop_after=lambda phase, step: (phase, step) == (Phase.DENOISE, 2))
    with pytest.raises(Cancelled):
        run(made, steps, watch)
    assert watch.told[-1] == (Phase.DENOISE, 2, 5)
    assert worst(before, draw(made, steps, [3])) == 0


def test_latents_that_are_no_numbers_are_no_picture(changed: Change) -> None:
    poison = tensors_changed(lambda t: t.update({"conv_out.bias": torch.full((4,), torch.nan)}))
    made, watch = loaded(changed(UNET, poison)), Recorder()
    with pytest.raises(Cancelled):
        run(made, plan("a red apple", size=SIZE), watch)
    assert watch.failures[0].code == ErrorCode.INFERENCE_FAILED
    assert "latents" in watch.failures[0].message
    assert watch.images == {}


def test_pixels_that_are_no_numbers_are_no_picture(changed: Change) -> None:
    key = "decoder.conv_out.bias"
    poison = tensors_changed(lambda t: t.update({key: torch.full((3,), torch.inf)}))
    made, watch = loaded(changed(VAE, poison)), Recorder()
    # Infinity is clamped to white, as diffusers does; only what is no number is refused.
    run(made, plan("a red apple", size=SIZE), watch)
    assert watch.failures == {}
    poison = tensors_changed(lambda t: t.update({key: torch.full((3,), torch.nan)}))
    poison(Path(made._loaded["m"].source.folder) / VAE)
    made, watch = loaded(Path(made._loaded["m"].source.folder)), Recorder()
    with pytest.raises(Cancelled):
        run(made, plan("a red apple", size=SIZE), watch)
    assert watch.failures[0].code == ErrorCode.INFERENCE_FAILED


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (SchedulerPlan("NoSuchScheduler"), "has no NoSuchScheduler"),
        (SchedulerPlan("SchedulerMixin2"), "has no SchedulerMixin2"),
        (SchedulerPlan("logging"), "has no logging"),
        (SchedulerPlan("DDIMScheduler", {"colour": "blue"}), "DDIMScheduler has no colour"),
        (SchedulerPlan("DDIMScheduler", {"beta_schedule": "wavy"}), "refuses its settings"),
        (
            SchedulerPlan("DPMSolverMultistepScheduler", {"algorithm_type": "guess"}),
            "refuses its settings",
        ),
    ],
)
def test_a_scheduler_that_cannot_be_made_is_invalid(
    tiny: Path, scheduler: SchedulerPlan, said: str
) -> None:
    error = refusal(lambda: run(loaded(tiny), plan("", size=SIZE, scheduler=scheduler)))
    assert error.code == ErrorCode.INFERENCE_INVALID
    assert said in error.message
    assert [detail.field for detail in error.details] == ["scheduler"]


def test_a_size_between_two_latents_is_invalid(tiny: Path) -> None:
    error = refusal(lambda: run(loaded(tiny), plan("", size=(32, 31))))
    assert error.code == ErrorCode.INFERENCE_INVALID
    assert "height" in error.message


DDIM = SchedulerPlan("DDIMScheduler")
ENCODE, LATENTS = EncodePrompt("", ""), MakeLatents(*SIZE)


@pytest.mark.parametrize(
    "steps",
    [
        [Decode()],
        [ENCODE, Denoise(DDIM, 3, 4.0, 0, 3)],
        [LATENTS, Denoise(DDIM, 3, 4.0, 0, 3)],
        [ENCODE, LATENTS, Denoise(DDIM, 3, 4.0, 1, 3)],
        [ENCODE, LATENTS, Denoise(DDIM, 3, 4.0, 0, 4)],
        [ENCODE, LATENTS, Denoise(DDIM, 3, 4.0, 3, 3)],
        [ENCODE, LATENTS, Denoise(DDIM, 3, 4.0, 0, 1), Denoise(DDIM, 3, 4.0, 2, 3)],
        [ENCODE, LATENTS, Denoise(DDIM, 3, 4.0, 0, 1), Denoise(DDIM, 4, 4.0, 1, 3)],
    ],
)
def test_a_plan_whose_steps_do_not_follow_is_a_violation(
    tiny: Path, steps: list[AnyPlanStep]
) -> None:
    assert refusal(lambda: run(loaded(tiny), steps)).code == ErrorCode.PROTOCOL_VIOLATION


def test_a_slot_too_small_is_refused_before_anything_is_computed(tiny: Path) -> None:
    made, watch = loaded(tiny), Recorder()
    with slots([SIZE[0] * SIZE[1] * 3 - 1]) as ((_, slot),):
        items = [RunItem(job(1), 1, 3, slot)]
        error = refusal(lambda: made.run("m", "cpu", items, plan("", size=SIZE), watch))
    assert error.code == ErrorCode.PROTOCOL_VIOLATION
    assert watch.told == []


def test_a_slot_that_is_smaller_than_it_says_or_not_there_is_refused(tiny: Path) -> None:
    made, needed = loaded(tiny), SIZE[0] * SIZE[1] * 3
    with slots([needed - 1]) as ((descriptor, slot),):
        lying = RunItem(job(1), 1, 3, Slot("s", slot.path, needed))
        gone = RunItem(job(1), 1, 3, Slot("s", "/nowhere/at/all", needed))
        for item in (lying, gone):
            steps = plan("", size=SIZE, steps=1)
            error = refusal(lambda: made.run("m", "cpu", [item], steps, Recorder()))  # noqa: B023
            assert error.code == ErrorCode.PROTOCOL_VIOLATION
            assert "write slot s" in error.message
        assert os.fstat(descriptor).st_size == needed - 1


def test_drawing_with_a_model_that_is_not_loaded_here_is_a_violation(tiny: Path) -> None:
    assert refusal(lambda: run(engine(), plan(""))).code == ErrorCode.PROTOCOL_VIOLATION
    made = loaded(tiny)
    error = refusal(lambda: made.run("m", "cuda:0", [], plan(""), Recorder()))
    assert error.code == ErrorCode.PROTOCOL_VIOLATION


# --- measuring ----------------------------------------------------------------------------------


def test_measuring_answers_in_order_and_leaves_what_is_loaded(tiny: Path) -> None:
    made = loaded(tiny)
    steps = plan("a red apple", size=SIZE)
    before = draw(made, steps, [3])
    candidates = [
        Numerics(Dtype.FLOAT32, MemoryFormat.CONTIGUOUS, 1),
        Numerics(Dtype.FLOAT32, MemoryFormat.CHANNELS_LAST, 2),
    ]
    results = made.measure(ModelSource("m", str(tiny)), "cpu", candidates, SIZE)
    measured = [result.numerics for result in results]
    assert measured == [candidate for candidate in candidates if candidate in measured]
    assert candidates[0] in measured
    assert all(result.step_ms > 0 for result in results)
    assert worst(before, draw(made, steps, [3])) == 0


def test_a_hopeless_candidate_is_dropped_after_its_first_call(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []
    clock = iter([10.0, 4.0, 5.0, 6.0, 30.1, 29.9, 7.0, 1.0, 9.0])

    def time_call(_unet: Any, _arguments: Any) -> float:
        calls.append(next(clock))
        return calls[-1]

    monkeypatch.setattr(torch_inference, "time_call", time_call)
    candidates = [
        Numerics(Dtype.FLOAT32, MemoryFormat.CONTIGUOUS, 1),
        Numerics(Dtype.BFLOAT16, MemoryFormat.CONTIGUOUS, 1),
        Numerics(Dtype.FLOAT32, MemoryFormat.CHANNELS_LAST, 1),
    ]
    results = engine().measure(ModelSource("m", str(tiny)), "cpu", candidates, SIZE)
    assert [(result.numerics, result.step_ms) for result in results] == [
        (candidates[0], 5.0),
        (candidates[2], 7.0),
    ]
