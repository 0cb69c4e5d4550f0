"""From a diffusers folder to modules on a device.

Reads safetensors and JSON only: nothing that could run a program is ever opened, and no network is
asked. A tensor that is missing, left over or of another shape is an error with its name. A module
is built without weights and takes the file's, so nothing is initialised to be overwritten.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from ..engine import Watch
from ..error_codes import ErrorCode
from ..errors import WorkerError
from ..messages import MemoryFormat, ModelSource, Numerics, Phase
from . import device as devices
from . import memory

PIPELINE = "StableDiffusionPipeline"
COMPONENTS = {
    "tokenizer": "CLIPTokenizer",
    "text_encoder": "CLIPTextModel",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
}
"""What a folder of this family holds beside its scheduler, and the only classes that we build."""
WEIGHT_FILES = {
    "text_encoder": ["model.safetensors", "model.fp16.safetensors"],
    "unet": ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"],
    "vae": ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"],
}
OLD_ATTENTION_NAMES = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
"""Names in autoencoders that were saved before diffusers 0.13, Stable Diffusion 1.5 among them."""
NAMES_SHOWN = 5

Module = TypeVar("Module", bound=torch.nn.Module)


@dataclass(frozen=True)
class LoadedModel:
    """A model that can draw."""

    source: ModelSource
    device: torch.device
    numerics: Numerics
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler_config: dict[str, Any]

    @property
    def bytes(self) -> int:
        """On the device."""
        return sum(map(memory.bytes_of, (self.text_encoder, self.unet, self.vae)))

    @property
    def pixels_per_latent(self) -> int:
        """In one direction."""
        return pixels_per_latent(self.vae.config)


def pixels_per_latent(vae_config: Any) -> int:
    """Each block of the autoencoder but the last halves the picture."""
    return 1 << (len(vae_config["block_out_channels"]) - 1)


def load(source: ModelSource, device: str, numerics: Numerics, watch: Watch) -> LoadedModel:
    """Every component in turn, telling the watch after each."""
    target = devices.find(device, numerics)
    folder = Path(source.folder)
    check_family(folder)
    parts: dict[str, Any] = {}
    for step, (name, build) in enumerate(BUILDERS.items(), start=1):
        began = time.perf_counter()
        parts[name] = build(folder / name, target, numerics)
        step_ms = (time.perf_counter() - began) * 1000
        watch.progress(Phase.LOAD, step, len(BUILDERS), step_ms)
    scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json")
    model = LoadedModel(source, target, numerics, **parts, scheduler_config=scheduler_config)
    check_text_to_image(model)
    return model


def check_family(folder: Path) -> None:
    """Refuse what this engine cannot draw with, by the folder's own list of classes."""
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != PIPELINE:
        raise unsupported(f"{folder.name} is a {index.get('_class_name')}; {PIPELINE} is served")
    for component, wanted in COMPONENTS.items():
        library_and_class = index.get(component)
        if not isinstance(library_and_class, list) or library_and_class[-1:] != [wanted]:
            raise unsupported(f"{component} of {folder.name} is {library_and_class}, not {wanted}")


def check_text_to_image(model: LoadedModel) -> None:
    """The same classes also serve inpainting and distilled models, which need another loop."""
    unet, vae = model.unet.config, model.vae.config
    if unet.in_channels != vae.latent_channels:
        raise unsupported(
            f"the unet takes {unet.in_channels} channels and the autoencoder makes "
            f"{vae.latent_channels}: an inpainting model cannot draw from text alone"
        )
    if unet.time_cond_proj_dim is not None:
        raise unsupported("a unet with embedded guidance (latent consistency) is not served")


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as problem:
        raise unreadable(path, problem) from problem
    if not isinstance(value, dict):
        raise unreadable(path, "it holds no JSON object")
    return value


# --- components ---------------------------------------------------------------------------------


def build_tokenizer(folder: Path, _: torch.device, __: Numerics) -> CLIPTokenizer:
    """Raises `model.unreadable` where the library would look for the missing files elsewhere."""
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise unreadable(folder, "there is no tokenizer.json and no vocab.json")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def build_text_encoder(folder: Path, device: torch.device, numerics: Numerics) -> CLIPTextModel:
    config = CLIPTextConfig(**read_json(folder / "config.json"))
    with torch.device("meta"):
        encoder = CLIPTextModel(config)
    fill(encoder, folder, device, numerics, clip_names)
    # The one buffer that is computed instead of stored.
    for name, buffer in list(encoder.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        if buffer.is_meta and leaf == "position_ids":
            places = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
            setattr(encoder.get_submodule(owner), leaf, places)
    return encoder


def build_unet(folder: Path, device: torch.device, numerics: Numerics) -> UNet2DConditionModel:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_json(folder / "config.json"))
    fill(unet, folder, device, numerics, lambda name, _: name)
    return lay_out(unet, numerics)


def build_vae(folder: Path, device: torch.device, numerics: Numerics) -> AutoencoderKL:
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(read_json(folder / "config.json"))
    fill(vae, folder, device, numerics, autoencoder_names)
    return lay_out(vae, numerics)


BUILDERS: dict[str, Callable[[Path, torch.device, Numerics], Any]] = {
    "tokenizer": build_tokenizer,
    "text_encoder": build_text_encoder,
    "unet": build_unet,
    "vae": build_vae,
}


def lay_out(module: Module, numerics: Numerics) -> Module:
    channels_last = numerics.memory_format is MemoryFormat.CHANNELS_LAST
    return module.to(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


# --- weights ------------------------------------------------------------------------------------


def clip_names(name: str, wanted: set[str]) -> str:
    """Releases of transformers differ in a prefix, and older ones stored a computed buffer."""
    for candidate in (name, name.removeprefix("text_model."), f"text_model.{name}"):
        if candidate in wanted:
            return candidate
    return "" if name.endswith("embeddings.position_ids") else name


def autoencoder_names(name: str, _: set[str]) -> str:
    *path, part, leaf = name.split(".")
    if "attentions" in path and part in OLD_ATTENTION_NAMES:
        part = OLD_ATTENTION_NAMES[part]
    return ".".join([*path, part, leaf])


def fill(
    module: torch.nn.Module,
    folder: Path,
    device: torch.device,
    numerics: Numerics,
    rename: Callable[[str, set[str]], str],
) -> None:
    """Give a weightless module the tensors of its file, in the precision of the numerics."""
    path = weight_file(folder)
    wanted = module.state_dict()
    names = set(wanted)
    tensors: dict[str, torch.Tensor] = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for stored in file.keys():  # noqa: SIM118 (the file is no dict)
                if name := rename(stored, names):
                    tensors[name] = file.get_tensor(stored)
    except (SafetensorError, OSError) as problem:
        raise unreadable(path, problem) from problem
    compare(path, wanted, tensors)
    dtype = devices.TORCH_DTYPE[numerics.dtype]
    for name, tensor in tensors.items():
        # Early autoencoders have linear layers saved as convolutions of one pixel.
        shaped = tensor.reshape(wanted[name].shape)
        tensors[name] = shaped.to(dtype) if shaped.is_floating_point() else shaped
    module.load_state_dict(tensors, strict=True, assign=True)
    module.requires_grad_(False)
    module.eval()


def compare(path: Path, wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Refuse weights that do not fit the configuration beside them, tensor by tensor."""
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is left over" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        shapes = [[side for side in t.shape if side != 1] for t in (wanted[name], found[name])]
        if shapes[0] != shapes[1]:
            want, have = tuple(wanted[name].shape), tuple(found[name].shape)
            problems.append(f"{name} has shape {have} and not {want}")
    if problems:
        shown = "; ".join(sorted(problems)[:NAMES_SHOWN])
        more = f"; and {len(problems) - NAMES_SHOWN} more" if len(problems) > NAMES_SHOWN else ""
        raise unreadable(path, shown + more)


def weight_file(folder: Path) -> Path:
    """The safetensors file of a component; a pickle beside it is never looked into."""
    choices = WEIGHT_FILES[folder.name]
    for choice in choices:
        if (folder / choice).is_file():
            return folder / choice
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    if pickles:
        raise unsupported(f"{folder} has only {pickles[0]}, a pickle, which is never opened")
    raise unreadable(folder, f"there is no {choices[0]}")


def unreadable(path: Path, reason: object) -> WorkerError:
    return WorkerError(ErrorCode.MODEL_UNREADABLE, f"read {path}: {reason}")


def unsupported(reason: str) -> WorkerError:
    return WorkerError(ErrorCode.MODEL_UNSUPPORTED, f"use this model: {reason}")
