"""What other packs put on a model's attention: their protocols, each with an effect that is easy to see."""

import comfy.hooks
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

BLOCK = ("input", 4, 0)  # the tiny UNet's first cross-attention
LAYOUT_KEYS = ("cond_or_uncond_couple", "cond_or_uncond_hook_couple")


class Attn2Replace:
    """The object that IPAdapter plus, InstantID and PuLID set on an attn2 key; the second of them calls its `add`."""

    def __init__(self, callback, **kwargs):
        self.callbacks = [(callback, kwargs)]

    def add(self, callback, **kwargs) -> None:
        self.callbacks.append((callback, kwargs))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        out = optimized_attention(q, k, v, extra_options["n_heads"])
        for callback, kwargs in self.callbacks:
            out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out


def image_prompt(out: Tensor, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, weight: float) -> Tensor:
    """What such a pack adds to the attention."""
    return weight * q.roll(1, dims=-1)


def add_image_prompt(model: ModelPatcher, weight: float = 0.5) -> ModelPatcher:
    """As those packs do: set an object where there is none, else call the `add` of whatever is there."""
    model = model.clone()
    replaces = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    if BLOCK in replaces:
        replaces[BLOCK].add(image_prompt, weight=weight)
    else:
        model.set_model_attn2_replace(Attn2Replace(image_prompt, weight=weight), *BLOCK)
    return model


def add_plain_replace(model: ModelPatcher) -> ModelPatcher:
    """A replace patch that is a function, without `add`."""

    def half_as_strong(q, k, v, extra_options):
        return 0.5 * optimized_attention(q, k, v, extra_options["n_heads"])

    model = model.clone()
    model.set_model_attn2_replace(half_as_strong, *BLOCK)
    return model


def add_block_replace(model: ModelPatcher) -> ModelPatcher:
    """A replace patch on the whole block's key, as older packs set it."""
    model = model.clone()
    model.set_model_attn2_replace(Attn2Replace(image_prompt, weight=0.3), *BLOCK[:2])
    return model


def add_context_patch(model: ModelPatcher) -> ModelPatcher:
    """attn2_patch, a list: changes the text that K and V are made of."""
    model = model.clone()
    model.set_model_attn2_patch(lambda n, context, value, extra_options: (n, 0.7 * context, 1.2 * value))
    return model


def add_output_patch(model: ModelPatcher) -> ModelPatcher:
    """attn2_output_patch, a list: changes what attention gave."""
    model = model.clone()
    model.set_model_attn2_output_patch(lambda out, extra_options: out + 0.25)
    return model


class AttentionCouple:
    """Regional prompts by a longer batch: each conditional part once more per prompt, masked and summed afterwards.

    The batch's true layout is published in extra_options under `key`.
    """

    def __init__(self, prompts: list[Tensor], masks: Tensor, key: str):
        self.prompts, self.masks, self.key = prompts, masks, key

    def attn2_patch(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> tuple[Tensor, Tensor, Tensor]:
        parts = extra_options["cond_or_uncond"]
        layout, grown = [], ([], [], [])
        for index, *chunks in zip(parts, *(x.chunk(len(parts)) for x in (q, k, v)), strict=True):
            more = [] if index == 1 else self.prompts
            layout += [index] * (1 + len(more))
            prompts = [prompt.expand(len(chunks[0]), -1, -1) for prompt in more]
            for rows, chunk, others in zip(grown, chunks, ([chunks[0]] * len(more), prompts, prompts), strict=True):
                rows += [chunk, *others]
        extra_options[self.key] = layout
        return tuple(torch.cat(rows) for rows in grown)

    def attn2_output_patch(self, out: Tensor, extra_options: dict) -> Tensor:
        layout = extra_options[self.key]
        size = tuple(extra_options["activations_shape"][2:])
        masks = torch.nn.functional.interpolate(self.masks[:, None], size).flatten(2).movedim(1, 2)
        parts, region = [], 0
        for index, rows in zip(layout, out.chunk(len(layout)), strict=True):
            if index == 1:
                parts.append(rows)
                continue
            if region == 0:
                parts.append(torch.zeros_like(rows))
            parts[-1] = parts[-1] + masks[region] * rows
            region = (region + 1) % len(self.masks)
        return torch.cat(parts)

    def on_model(self, model: ModelPatcher) -> ModelPatcher:
        """As ComfyUI-ppm does it."""
        model = model.clone()
        model.set_model_attn2_patch(self.attn2_patch)
        model.set_model_attn2_output_patch(self.attn2_output_patch)
        return model

    def on_conditioning(self, conditioning: list) -> list:
        """As comfyui-prompt-control does it: the patches come with the conditioning."""
        patches = {"attn2_patch": [self.attn2_patch], "attn2_output_patch": [self.attn2_output_patch]}
        group = comfy.hooks.HookGroup()
        scope = comfy.hooks.EnumHookScope.HookedOnly
        group.add(comfy.hooks.TransformerOptionsHook({"patches": patches}, hook_scope=scope))
        return comfy.hooks.set_hooks_for_conditioning(conditioning, group)
