"""One ComfyUI server for all live tests, with tiny models and photos; a plugin, so that test modules share it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import skimage.data
from comfy.cldm.cldm import ControlNet
from PIL import Image, ImageOps
from safetensors.torch import save_file

from live import LiveServer
from tiny_pack.models import UNET
from tiny_pack.weights import weight
from tiny_prompt import write_tiny_models

LORA, CONTROLNET = "watercolor_v1_sdxl.safetensors", "control-lora-canny-rank256.safetensors"  # names in the workflows
LORA_RANK = 4
CONTROLNET_HEADS = 64  # channels of a head, ComfyUI's default where a file fits no known model


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """A server whose models folder has a tiny checkpoint, face models, a style LoRA and a ControlNet."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")  # with tiny models more threads cost more than they save
        with LiveServer(Path(folder_paths.base_path)) as running:
            write_tiny_models(running.models)
            write_style_lora(running.models / "loras")
            write_controlnet(running.models / "controlnet")
            yield running


@pytest.fixture(scope="session")
def object_info(server) -> dict[str, Any]:
    return server.object_info()


@pytest.fixture(scope="session")
def photos(server, tmp_path_factory) -> list[str]:
    """Uploaded photos of one face: the whole picture, a crop of another shape with a painted mask, and mirrored."""
    whole = Image.fromarray(skimage.data.astronaut())
    crop = whole.crop((60, 0, 400, 300))
    alpha = Image.new("L", crop.size, 255)
    alpha.paste(0, (80, 40, 240, 280))  # what the Mask Editor paints becomes transparent
    crop.putalpha(alpha)
    pictures = {"whole.png": whole, "crop.png": crop, "mirrored.jpg": ImageOps.mirror(whole)}
    folder = tmp_path_factory.mktemp("photos")
    for name, picture in pictures.items():
        picture.save(folder / name)
    return [server.upload(folder / name) for name in pictures]


def write_style_lora(folder: Path) -> None:
    """A LoRA in kohya's layout on the tiny UNet's and first text encoder's attention."""
    widths = {
        "unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": 64,
        "unet_middle_block_1_transformer_blocks_0_attn2_to_out_0": 128,
        "te1_text_model_encoder_layers_0_self_attn_q_proj": 192,
    }
    lora = {}
    for module, width in widths.items():
        for side, shape in (("down", (LORA_RANK, width)), ("up", (width, LORA_RANK))):
            key = f"lora_{module}.lora_{side}.weight"
            lora[key] = weight(f"style {key}", shape, seed=1)
    folder.mkdir()
    save_file(lora, folder / LORA)


def write_controlnet(folder: Path) -> None:
    """A ControlNet of the tiny UNet's sizes, in the layout of its authors."""
    config = {**UNET, "num_head_channels": CONTROLNET_HEADS}
    del config["out_channels"]
    net = ControlNet(hint_channels=3, **config)
    state = {f"control_model.{key}": weight(key, tensor.shape, seed=1) for key, tensor in net.state_dict().items()}
    folder.mkdir()
    save_file(state, folder / CONTROLNET)
