"""Whether a checkpoint's tensors are all there and of sizes that go together; each finding is a ValueError."""

import torch
from torch import Tensor, nn

from .adapter import SUBJECT, TOKENS_GROUP, Adapter, Sizes
from .lora import IMAGE_LORAS, check_attentions, name_text_lora

ARCFACE_DIM = 512
LORAS = ("to_q_lora", "to_k_lora", "to_v_lora", "to_out_lora")


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
    """q, k, v and out of every layer; fc1 and fc2 and an alpha where they are there."""
    name_text_lora(lora)
    shapes = {}
    for module in sorted({key.rpartition(".lora_linear_layer.")[0] or key.removesuffix(".alpha") for key in lora}):
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


def check_vision(vision: dict[str, Tensor], known_whole: bool) -> None:
    """The tuned layers are the encoder's last ones, and the same parameters of each are tuned."""
    if not vision and not known_whole:
        raise ValueError("it has no vision weights")
    if unknown := sorted(key for key in vision if not key.startswith(("vision_model.", "visual_projection."))):
        raise ValueError(f"'vision.{unknown[0][:100]}' is no tensor of a CLIP vision model")
    layers: dict[str, set[str]] = {}
    for key in vision:
        place, found, rest = key.partition("encoder.layers.")
        number, _, name = rest.partition(".")
        if found:
            layers.setdefault(number, set()).add(name)
    names = set().union(*layers.values())
    for number, found in sorted(layers.items()):
        if missing := sorted(names - found):
            raise ValueError(f"'vision.vision_model.encoder.layers.{number[:20]}.{missing[0][:80]}' is missing")
