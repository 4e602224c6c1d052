"""The LoRAs of MM-Diff as ordinary weight patches of the UNet and of the text encoders.

The released files count the UNet's attentions in diffusers' registration order (down, up, middle) and write text LoRAs
in any layout that diffusers 0.21 reads. Both are given one name here, the one that comfy.lora.load_lora reads.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from uuid import uuid5

import comfy.lora
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

LAYERS_PER_BLOCK = 2
FIRST_ATTENTION_BLOCK = 1
IMAGE_LORAS = ("to_k_lora_image", "to_v_lora_image")
# where comfy.weight_adapter keeps a DoRA's scale, in the adapters that are sums without one
DORA_SCALE = {"lora": 4, "loha": 7, "lokr": 8}

# as text, for the import of the pack shall be quick: `re` compiles a pattern at its first use, and keeps it
BLOCK_NAME = (
    r"(?:(?P<side>down|up)_blocks\.(?P<block>[0-9]{1,4})|mid_block)\.attentions\.(?P<attention>[0-9])"
    r"\.transformer_blocks\.(?P<number>[0-9]{1,4})"
)
UNET_MODULE = r"unet\..+\.attn[12]\.processor\.to_(?:q|k|v|out)"
OFFICIAL_UNET_KEY = r"[0-9]{1,4}\.[a-z_]+\.(?:down|up)\.weight"

TEXT_MODULES = r"(self_attn_(?:q|k|v|out)_proj|mlp_fc[12])"
KOHYA_KEY = (
    rf"lora_te(1|2)_text_model_encoder_layers_([0-9]{{1,4}})_{TEXT_MODULES}\.(lora_down\.weight|lora_up\.weight|alpha)"
)
OLD_DIFFUSERS_KEY = r"(.+\.self_attn)\.to_(q|k|v|out)_lora\.(down|up)\.weight"
DIFFUSERS_KEY = (
    r"text_encoder(?:_2)?\.text_model\.encoder\.layers\.[0-9]{1,4}\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12])"
    r"\.(?:lora_linear_layer\.(?:down|up)\.weight|alpha)"
)


def attention_names(widths: list[int]) -> list[str]:
    """Names of an SDXL-shaped UNet's transformer blocks in diffusers' order, from their widths in that order.

    A level of depth d shows as 2 d blocks going down and 3 d going up, then the middle follows. SDXL: 70 names.
    Raises ValueError where the widths are not those of such a UNet.
    """
    runs = [(width, len(list(run))) for width, run in groupby(widths)]
    levels = len(runs) // 2
    depths = [count // LAYERS_PER_BLOCK for _, count in runs[: levels - 1]]
    if levels == 0 or runs[levels - 1][1] % (2 * LAYERS_PER_BLOCK + 1):
        raise ValueError(f"attention widths {runs} are not those of an SDXL UNet")
    depths.append(runs[levels - 1][1] // (2 * LAYERS_PER_BLOCK + 1))
    names = list(names_of_depths(depths, runs[-1][1]))
    if len(names) != len(widths):
        raise ValueError(f"attention widths {runs} are not those of an SDXL UNet")
    return names


def names_of_depths(
    depths: list[int], middle: int, layers: int = LAYERS_PER_BLOCK, first: int = FIRST_ATTENTION_BLOCK
) -> Iterator[str]:
    """Names of the transformer blocks of an SDXL-shaped UNet, by their number in each attention of a level.

    layers: attentions of a block that goes down. first: the first block that has any.
    """
    levels = list(enumerate(depths))
    down = [(f"down_blocks.{first + level}", layers, depth) for level, depth in levels]
    up = [(f"up_blocks.{len(depths) - 1 - level}", layers + 1, depth) for level, depth in reversed(levels)]
    return (
        f"{block}.attentions.{attention}.transformer_blocks.{number}"
        for block, attentions, depth in (*down, *up, ("mid_block", 1, middle))
        for attention in range(attentions)
        for number in range(depth)
    )


def check_attentions(found: set[str]) -> None:
    """Raises ValueError unless these are the blocks of an SDXL-shaped UNet, as deep as the deepest and with as many
    attentions in a block as the fullest of them. Such a UNet has a middle, one with attention in its first block too
    (the small world's) may have none."""
    places = []
    for name in sorted(found):
        match = re.fullmatch(BLOCK_NAME, name)
        if not match or max(int(match["number"]), int(match["block"] or 0)) > len(found):
            raise ValueError(f"'{name[:100]}' is not an attention of an SDXL UNet")
        places.append((match["side"], *(int(match[part] or 0) for part in ("block", "attention", "number"))))
    first = 0 if any((side, block) == ("down", 0) for side, block, _, _ in places) else FIRST_ATTENTION_BLOCK
    levels = max((block + 1 - first * (side == "down") for side, block, _, _ in places if side), default=1)
    layers = max((attention + (side == "down") for side, _, attention, _ in places if side), default=1)
    depths, middle = [1] * levels, first
    for side, block, _, number in places:
        if side is None:
            middle = max(middle, number + 1)
        else:
            level = block - first if side == "down" else levels - 1 - block
            depths[level] = max(depths[level], number + 1)
    if missing := next((name for name in names_of_depths(depths, middle, layers, first) if name not in found), None):
        raise ValueError(f"the UNet LoRA is incomplete, '{missing}' is missing")
    if extra := sorted(found.difference(names_of_depths(depths, middle, layers, first))):
        raise ValueError(f"'{extra[0]}' is not an attention of an SDXL UNet")


def name_unet_lora(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """`<i>.to_q_lora...` of unet_adapter_weights.bin -> `<diffusers attention>.processor.to_q_lora...`.

    Raises ValueError on other keys, and where an attention is missing.
    """
    if strange := [key for key in official if not re.fullmatch(OFFICIAL_UNET_KEY, key)]:
        raise ValueError(f"'{strange[0][:100]}' is not a key of a UNet LoRA")
    pairs = len({key.split(".")[0] for key in official}) // 2
    queries = [f"{2 * pair}.to_q_lora.up.weight" for pair in range(pairs)]
    if missing := [key for key in queries if key not in official]:
        raise ValueError(f"the UNet LoRA is incomplete, '{missing[0]}' is missing")
    names = attention_names([official[key].shape[0] for key in queries])
    named = {}
    for key, tensor in official.items():
        index, rest = key.split(".", 1)
        pair, is_cross = divmod(int(index), 2)
        if pair >= pairs:
            raise ValueError(f"the UNet LoRA is incomplete, it has an attention {index} of {2 * pairs}")
        named[f"{names[pair]}.attn{is_cross + 1}.processor.{rest}"] = tensor
    return named


def name_text_lora(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Any layout of text_encoder_adapter_weights.bin -> `text_encoder[_2].text_model....lora_linear_layer.down.weight`.

    Raises ValueError on a key of no known layout, on two for one tensor, and where a layer or a part of one is missing.
    """
    named = {}
    for key, tensor in official.items():
        if kohya := re.fullmatch(KOHYA_KEY, key):
            encoder, layer, module, part = kohya.groups()
            module = module.replace("self_attn_", "self_attn.").replace("mlp_", "mlp.")
            part = part.replace("lora_", "lora_linear_layer.")
            key = f"text_encoder{'' if encoder == '1' else '_2'}.text_model.encoder.layers.{layer}.{module}.{part}"
        elif old := re.fullmatch(OLD_DIFFUSERS_KEY, key):
            key = "{}.{}_proj.lora_linear_layer.{}.weight".format(*old.groups())
        if not re.fullmatch(DIFFUSERS_KEY, key):
            raise ValueError(f"'{key[:100]}' is not a key of a text encoder LoRA")
        if key in named:
            raise ValueError(f"'{key}' is there twice, in two layouts")
        named[key] = tensor
    for encoder in ("text_encoder", "text_encoder_2"):
        prefix = f"{encoder}.text_model.encoder.layers."
        layers = {int(key.removeprefix(prefix).split(".")[0]) for key in named if key.startswith(prefix)}
        wanted = {
            f"{prefix}{layer}.self_attn.{p}_proj.lora_linear_layer.{side}.weight"
            for layer in range(len(layers))
            for p in ("q", "k", "v", "out")
            for side in ("down", "up")
        }
        if missing := sorted(wanted - named.keys()):
            raise ValueError(f"the text encoder LoRA is incomplete, '{missing[0]}' is missing")
    return named


def text_module(key: str) -> str:
    """The layer of a text encoder that a key of its LoRA is for."""
    return re.sub(r"\.(lora_linear_layer\..*|alpha)$", "", key)


def unet_patches(model: ModelPatcher, unet_lora: dict[str, Tensor]) -> dict:
    """Weight patches for every q, k, v, out of the UNet's attentions; the image LoRAs are left to the image branch.

    Sizes are those of the live weights: a quantised base's `state_dict` may show how it stores them.
    Raises ValueError where an attention of the checkpoint is not in the model, or one of the model not in it.
    """
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    lora = {f"unet.{key}": tensor for key, tensor in unet_lora.items() if not any(name in key for name in IMAGE_LORAS)}
    modules = set()
    for key, tensor in lora.items():
        modules.add(module := key.split("_lora.")[0])
        if module not in keys or not _fits(tensor, key, comfy.utils.get_attr(model.model, keys[module]).shape):
            raise ValueError(f"'{module.removeprefix('unet.')}' has no counterpart of the same size in this base model")
    if lacked := sorted(key for key in keys if re.fullmatch(UNET_MODULE, key) and key not in modules):
        raise ValueError(f"'{lacked[0].removeprefix('unet.')}' of this base model has no LoRA in the checkpoint")
    return comfy.lora.load_lora(lora, keys)


def text_patches(clip_patcher: ModelPatcher, text_lora: dict[str, Tensor], text_encoder_2: bool) -> dict:
    """Weight patches for the text encoders. The released code never applies those of the second one.

    Raises ValueError where a layer of the checkpoint is not in the text encoders, or one of an encoder not in it.
    """
    keys = comfy.lora.model_lora_keys_clip(clip_patcher.model, {})
    lora = {key: tensor for key, tensor in text_lora.items() if text_encoder_2 or not key.startswith("text_encoder_2.")}
    modules = set(map(text_module, lora))
    if strange := sorted(modules.difference(keys)):
        raise ValueError(f"'{strange[0]}' has no counterpart in these text encoders")
    for encoder in sorted({module.split(".")[0] for module in modules}):
        places = (key for key in keys if key.startswith(f"{encoder}.") and ".self_attn." in key)
        if lacked := sorted(set(places) - modules):
            raise ValueError(f"'{lacked[0]}' of these text encoders has no LoRA in the checkpoint")
    return comfy.lora.load_lora(lora, keys)


def add_lora(patcher: ModelPatcher, patches: dict, digest: str) -> None:
    """Adds weight patches whose tensors `digest` names. The same base and digest are the same patched model.

    ComfyUI keeps merged weights for as long as `patches_uuid` stays; `add_patches` draws a new one each time.
    """
    base = patcher.patches_uuid
    patcher.add_patches(patches)
    patcher.patches_uuid = uuid5(base, digest)


def held_strength(patches: list[tuple], up: Tensor) -> float:
    """The strength with which a weight with these patches, in order, holds the LoRA with this `up`.

    Each patch scales what was there before it by its third entry; a merged model is a list with patches of its own.
    """
    held = 0.0
    for strength, patch, strength_model, *_ in patches:
        held *= strength_model
        if isinstance(patch, list):
            held += strength * held_strength(patch[1:], up)
        elif isinstance(patch, WeightAdapterBase):
            held += strength * (patch.weights[0] is up)
        elif len(patch) == 2 and patch[0] == "set":
            held = 0.0
    return held


def turns(patches: list[tuple], up: Tensor) -> bool:
    """Whether a patch after the LoRA with this `up` does more than to add or scale: OFT, GLoRA, DoRA."""
    ours = [held_strength([patch], up) != 0 for patch in patches]
    return True in ours and not all(_adds(patch) for _, patch, *_ in patches[ours.index(True) :])


def _adds(patch: object) -> bool:
    if not isinstance(patch, WeightAdapterBase):
        return True
    dora = DORA_SCALE.get(patch.name)
    return dora is not None and patch.weights[dora] is None


def _fits(tensor: Tensor, key: str, weight_shape) -> bool:
    return tensor.shape[0] == weight_shape[0] if ".up." in key else tensor.shape[1] == weight_shape[1]
