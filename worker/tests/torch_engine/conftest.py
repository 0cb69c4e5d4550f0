"""A tiny Stable Diffusion with random weights, made once: the true architecture, no download."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
DEMO = REPOSITORY / "models" / "demo"

pytestmark = pytest.mark.slow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs torch and takes seconds."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers saves it, with the demo model's tokenizer."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=16,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
        ),
        vae=AutoencoderKL(
            block_out_channels=(32, 64),
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=4096,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                bos_token_id=4094,
                eos_token_id=4095,
                pad_token_id=4095,
            )
        ),
        tokenizer=CLIPTokenizer.from_pretrained(DEMO / "tokenizer", local_files_only=True),
        # As in Stable Diffusion 1.5, so that other schedulers start from a foreign configuration.
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("tiny")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def changed(tiny: Path, tmp_path: Path) -> Callable[[str, Callable[[Path], Any]], Path]:
    """A copy of the tiny model in which one file or folder was changed."""

    def change(part: str, act: Callable[[Path], Any]) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(tiny, folder)
        act(folder / part)
        return folder

    return change


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Tests may change the number of threads; the next test must not notice."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
