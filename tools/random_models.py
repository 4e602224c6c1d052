"""SDXL, its text encoders, CLIP ViT-L/14 and MM-Diff at their real sizes with small random weights, without a download.

Imports of the host come late: it reads the command line when it is first imported.
"""

import json
from pathlib import Path

WIDTHS = [640] * 4 + [1280] * 50 + [640] * 6 + [1280] * 10
RANK, TOKENS = 64, 4


def random_sdxl(dtype):
    """A ModelPatcher of SDXL's real size with small random weights."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    from mmdiff_model.training.memory import UNET

    config = comfy.supported_models.SDXL({**UNET, "dtype": dtype})
    torch.manual_seed(0)
    model = comfy.model_base.SDXL(config, device="cpu")
    for parameter in model.diffusion_model.parameters():
        parameter.data.normal_(std=0.02)
    return comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(), torch.device("cpu"))


def random_checkpoint():
    """A checkpoint of the released sizes with random LoRAs; sampling needs nothing else of it."""
    import torch

    from mmdiff_model.checkpoint import Checkpoint
    from mmdiff_model.lora import attention_names

    lora = {}
    for name, width in zip(attention_names(WIDTHS), WIDTHS, strict=True):
        for attention, source, image in (("attn1", width, ()), ("attn2", 2048, ("to_k_lora_image", "to_v_lora_image"))):
            for key in ("to_q_lora", "to_k_lora", "to_v_lora", "to_out_lora", *image):
                inputs = width if key in ("to_q_lora", "to_out_lora") else source
                lora[f"{name}.{attention}.processor.{key}.down.weight"] = (
                    torch.randn(RANK, inputs, dtype=torch.bfloat16) / inputs**0.5
                )
                lora[f"{name}.{attention}.processor.{key}.up.weight"] = (
                    torch.randn(width, RANK, dtype=torch.bfloat16) * 0.01
                )
    return Checkpoint("benchmark", "portrait", None, "benchmark", None, {}, {}, lora)


def random_text(dtype):
    """SDXL's two text encoders with small random weights, and the host's tokenisers."""
    import comfy.sd
    import comfy.sdxl_clip

    class Target:
        params: dict = {}
        clip, tokenizer = comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer

    clip = comfy.sd.CLIP(Target, model_options={"dtype": dtype})
    for parameter in clip.cond_stage_model.parameters():
        parameter.data.normal_(std=0.02)
    return clip


def random_vision():
    """CLIP ViT-L/14 with small random weights."""
    import comfy.clip_vision

    config = Path(comfy.clip_vision.__file__).with_name("clip_vision_config_vitl.json")
    vision = comfy.clip_vision.ClipVisionModel(json.loads(config.read_text()))
    for parameter in vision.model.parameters():
        parameter.data.normal_(std=0.02)
    return vision


def random_adapter(vision):
    """A checkpoint of the released sizes whose adapter, tuned part of CLIP and text LoRA are random; no UNet LoRA."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.ops
    import torch

    from mmdiff_model.adapter import PORTRAIT, Adapter, Sizes
    from mmdiff_model.checkpoint import Checkpoint

    sizes = Sizes(768, 768, (768, 1280), 512, 1024, 1024, 2048, TOKENS, 4)
    adapter = Adapter(sizes, PORTRAIT, comfy.ops.manual_cast, dtype=torch.float16, device="cpu").requires_grad_(False)
    for parameter in adapter.parameters():
        parameter.data.normal_(std=0.02)
    patcher = comfy.model_patcher.CoreModelPatcher(
        adapter,
        load_device=comfy.model_management.text_encoder_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )
    tuned = ("layers.22.", "layers.23.", "post_layernorm", "visual_projection")
    changed = {
        key: weight.clone() for key, weight in vision.model.state_dict().items() if any(name in key for name in tuned)
    }
    lora = {}
    for layer in range(12):
        for name in ("q", "k", "v", "out"):
            module = f"text_encoder.text_model.encoder.layers.{layer}.self_attn.{name}_proj.lora_linear_layer"
            lora[f"{module}.down.weight"] = torch.randn(RANK, 768) / 768**0.5
            lora[f"{module}.up.weight"] = 0.01 * torch.randn(768, RANK)
    return Checkpoint("benchmark", PORTRAIT, sizes, "benchmark", patcher, changed, lora, {})
