"""Whether a checkpoint's tensors are all there and of sizes that go together; each finding is a ValueError."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .adapter import SUBJECT, TOKENS_GROUP, Adapter, Sizes
from .lora import IMAGE_LORAS, check_attentions, name_text_lora, text_module

ARCFACE_DIM = 512
LORAS = ("to_q_lora", "to_k_lora", "to_v_lora", "to_out_lora")
# layers by width of the encoders that the released files go with: SDXL's two, and CLIP ViT-L/14
TEXT_LAYERS = {768: 12, 1280: 32}
VISION_LAYERS = {1024: 24}


def read_sizes(modules: dict[str, Tensor], variant: str) -> Sizes:
    """The adapter's sizes, with every tensor of it there and of its shape."""
    try:
        sizes = Sizes.from_tensors(modules, variant)
    except KeyError as error:
        raise ValueError(f"{error} is missing") from error
    except (IndexError, ZeroDivisionError) as error:
        raise ValueError("its tensors are not of MM-Diff's shapes") from error
    if 9 * sizes.depth > len(modules):  # before so many layers are made
        raise ValueError(f"layers of its SE-Refiner are missing, of {sizes.depth}")
    identity = sizes.cls_dim if variant == SUBJECT else ARCFACE_DIM
    if sizes.identity_dim != identity:
        name = f"{TOKENS_GROUP[variant]}.proj.0.weight"
        raise ValueError(f"'{name}' reads identity vectors of {sizes.identity_dim} numbers, not {identity}")
    wanted = Adapter(sizes, variant, nn, device="meta").state_dict()
    check_shapes(modules, {key: tensor.shape for key, tensor in wanted.items()})
    return sizes


def check_shapes(tensors: dict[str, Tensor], shapes: dict[str, torch.Size | tuple[int, ...]]) -> None:
    """Raises ValueError on a tensor that is missing, unknown, or of another shape."""
    for key, shape in shapes.items():
        if key not in tensors:
            raise ValueError(f"'{key}' is missing")
        if tensors[key].shape != shape:
            raise ValueError(f"'{key}' has shape {tuple(tensors[key].shape)}, not {tuple(shape)}")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise ValueError(f"'{unknown[0][:100]}' is no tensor of MM-Diff")


def check_unet_lora(lora: dict[str, Tensor], sizes: Sizes, known_whole: bool) -> None:
    """known_whole: the file's digest has said that no attention is missing."""
    attentions = {key.split(".processor.")[0] for key in lora}
    if not attentions:
        raise ValueError("it has no UNet LoRA")
    if not known_whole:
        blocks = {attention.removesuffix(".attn1").removesuffix(".attn2") for attention in attentions}
        check_attentions(blocks)
        attentions = {f"{block}.{attention}" for block in blocks for attention in ("attn1", "attn2")}
    shapes = {}
    for attention in sorted(attentions):
        is_cross = attention.endswith(".attn2")
        query = lora.get(f"{attention}.processor.to_q_lora.up.weight")
        if query is None or query.ndim == 0:
            raise ValueError(f"'{attention}.processor.to_q_lora.up.weight' is missing")
        width = query.shape[0]
        for name in (*LORAS, *IMAGE_LORAS * is_cross):
            is_source = is_cross and name not in ("to_q_lora", "to_out_lora")
            key = f"{attention}.processor.{name}"
            shapes |= pair_shapes(lora, key, sizes.context_dim if is_source else width, width)
    check_shapes(lora, shapes)


def check_text_lora(lora: dict[str, Tensor], sizes: Sizes) -> None:
    """q, k, v and out of every layer; fc1, fc2 and an alpha of every layer where one has them."""
    name_text_lora(lora)
    modules = sorted(set(map(text_module, lora)))
    for encoder, width in zip(("text_encoder", "text_encoder_2"), sizes.text_dims, strict=True):
        own = [module for module in modules if module.startswith(f"{encoder}.")]
        layers = {module.split(".")[4] for module in own}
        if own and len(layers) != TEXT_LAYERS.get(width, len(layers)):
            raise ValueError(f"its '{encoder}' LoRA has {len(layers)} layers, not {TEXT_LAYERS[width]}")
        names = {module.split(".", 5)[5] for module in own}
        wanted = {f"{encoder}.text_model.encoder.layers.{layer}.{name}" for layer in layers for name in names}
        if missing := sorted(wanted.difference(own)):
            raise ValueError(f"'{missing[0]}' is missing")
        with_alpha = [module for module in own if f"{module}.alpha" in lora]
        if with_alpha and with_alpha != own:
            raise ValueError(f"'{next(module for module in own if module not in with_alpha)}.alpha' is missing")
    shapes = {}
    for module in modules:
        width = sizes.text_dims[module.startswith("text_encoder_2.")]
        down, up = (lora.get(f"{module}.lora_linear_layer.{side}.weight") for side in ("down", "up"))
        inner = module.endswith((".fc1", ".fc2")) and down is not None and up is not None and down.ndim == up.ndim == 2
        size_in = down.shape[1] if inner and module.endswith(".fc2") else width
        size_out = up.shape[0] if inner and module.endswith(".fc1") else width
        shapes |= pair_shapes(lora, f"{module}.lora_linear_layer", size_in, size_out)
        if f"{module}.alpha" in lora:
            shapes[f"{module}.alpha"] = ()
    check_shapes(lora, shapes)


def pair_shapes(lora: dict[str, Tensor], key: str, size_in: int, size_out: int) -> dict[str, tuple[int, ...]]:
    """What down and up of one LoRA must be, for the rank that its down has."""
    down = lora.get(f"{key}.down.weight")
    rank = 0 if down is None or down.ndim == 0 else down.shape[0]
    return {f"{key}.down.weight": (rank, size_in), f"{key}.up.weight": (size_out, rank)}


def check_vision(vision: dict[str, Tensor], sizes: Sizes, known_whole: bool) -> None:
    """The tuned layers are the encoder's last ones, and the same parameters of each are tuned."""
    if not vision and not known_whole:
        raise ValueError("it has no vision weights")
    if unknown := sorted(key for key in vision if not key.startswith(("vision_model.", "visual_projection."))):
        raise ValueError(f"'vision.{unknown[0][:100]}' is no tensor of a CLIP vision model")
    layers = tuned_layers(vision)
    names = set().union(*layers.values())
    for number, found in sorted(layers.items()):
        if missing := sorted(names - found):
            raise ValueError(f"'vision.vision_model.encoder.layers.{number}.{missing[0][:80]}' is missing")
    check_last_layers(vision, VISION_LAYERS.get(sizes.patch_dim, max(layers, default=-1) + 1))


def tuned_layers(vision: dict[str, Tensor]) -> dict[int, set[str]]:
    """The tuned parameters of each layer of the vision encoder. Raises ValueError on a number that is none."""
    layers: dict[int, set[str]] = {}
    for key in vision:
        _, found, rest = key.partition("encoder.layers.")
        if found:
            match = re.fullmatch(r"([0-9]{1,4})\.(.+)", rest)
            if not match:
                raise ValueError(f"'vision.{key[:100]}' is no tensor of a CLIP vision model")
            layers.setdefault(int(match[1]), set()).add(match[2])
    return layers


def check_last_layers(vision: dict[str, Tensor], depth: int) -> None:
    """Raises ValueError unless the tuned layers are the last ones of a vision encoder of `depth` layers."""
    tuned = tuned_layers(vision)
    if missing := [number for number in range(min(tuned, default=depth), depth) if number not in tuned]:
        raise ValueError(f"'vision.vision_model.encoder.layers.{missing[-1]}' of {depth} layers is missing")


def doubts(vision: dict[str, Tensor], text_lora: dict[str, Tensor]) -> Iterator[str]:
    """What a checkpoint lacks that may be left out, or be lost."""
    if "visual_projection.weight" not in vision:
        yield "'visual_projection.weight' of the vision encoder"
    if not any(key.startswith("text_encoder.") for key in text_lora):
        yield "LoRA of the first text encoder"
