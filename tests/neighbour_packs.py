"""What other packs put on a model's attention: their protocols, each with an effect that is easy to see."""

from collections.abc import Sequence
from functools import partial

import comfy.hooks
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.sd import CLIP
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

    The batch's true layout is published in extra_options under `key`; cgem156-ComfyUI publishes none.
    """

    def __init__(self, prompts: list[Tensor], masks: Tensor, key: str | None):
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
        self.layout = layout
        if self.key is not None:
            extra_options[self.key] = layout
        return tuple(torch.cat(rows) for rows in grown)

    def attn2_output_patch(self, out: Tensor, extra_options: dict) -> Tensor:
        layout = self.layout
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


def rows_of(call: dict, rows: Sequence[int], part: slice = slice(None), columns: slice = slice(None)) -> dict:
    """A model call's arguments for some of its rows, a part of its conditionings and some columns of its latents."""
    options = {**call["c"]["transformer_options"]}
    for key in ("uuids", "cond_or_uncond"):
        options[key] = options[key][part]
    tensors = {key: value[rows] for key, value in call["c"].items() if torch.is_tensor(value)}
    return {
        "x": call["input"][rows][..., columns],
        "t": call["timestep"][rows],
        **tensors,
        "transformer_options": options,
    }


def in_tiles(model: ModelPatcher, at_once: int, columns: Sequence[slice], singly: bool = False) -> ModelPatcher:
    """ComfyUI-TiledDiffusion: all rows of the first tile, then all of the second, `at_once` tiles in one call.

    With `singly`, the rows one at a time, each told as the host would tell a call of its own.
    """

    def run(apply_model, call: dict) -> Tensor:
        x, parts = call["input"], len(call["cond_or_uncond"])
        out, weight = torch.zeros_like(x), torch.zeros_like(x)
        for start in range(0, len(columns), at_once):
            tiles = columns[start : start + at_once]
            if singly:
                length = len(x) // parts
                found = [
                    torch.cat(
                        [
                            apply_model(**rows_of(call, [row], slice(row // length, row // length + 1), tile))
                            for row in range(len(x))
                        ]
                    )
                    for tile in tiles
                ]
            else:
                given = rows_of(call, list(range(len(x))) * len(tiles))
                given["x"] = torch.cat([x[..., tile] for tile in tiles])
                found = apply_model(**given).chunk(len(tiles))
            for tile, part in zip(tiles, found, strict=True):
                out[..., tile] += part
                weight[..., tile] += 1
        return out / weight

    model = model.clone()
    model.set_model_unet_function_wrapper(run)
    return model


def past_apply_model(model: ModelPatcher) -> ModelPatcher:
    """ComfyUI-deepcache: its function wrapper runs the UNet itself, and no APPLY_MODEL wrapper is called."""
    model = model.clone()

    def run(apply_model, call: dict) -> Tensor:
        base, c = model.model, call["c"]
        x = base.model_sampling.calculate_input(call["timestep"], call["input"])
        t = base.model_sampling.timestep(call["timestep"]).float()
        options = c["transformer_options"]
        out = base.diffusion_model(x, t, context=c["c_crossattn"], y=c["y"], transformer_options=options)
        return base.model_sampling.calculate_denoised(call["timestep"], out, call["input"])

    model.set_model_unet_function_wrapper(run)
    return model


def past_every_option(model: ModelPatcher) -> ModelPatcher:
    """A function wrapper that runs the UNet itself, with the attention patches as its only options."""
    model = model.clone()

    def run(apply_model, call: dict) -> Tensor:
        base, c = model.model, call["c"]
        x = base.model_sampling.calculate_input(call["timestep"], call["input"])
        t = base.model_sampling.timestep(call["timestep"]).float()
        options = {"patches_replace": c["transformer_options"]["patches_replace"]}
        out = base.diffusion_model(x, t, context=c["c_crossattn"], y=c["y"], transformer_options=options)
        return base.model_sampling.calculate_denoised(call["timestep"], out, call["input"])

    model.set_model_unet_function_wrapper(run)
    return model


def rows_singly(model: ModelPatcher) -> ModelPatcher:
    """RES4LYF's ReSDPatcher: its UNet runs row by row, under the options of the whole batch."""

    def run(executor, x, timesteps, context, y, control, transformer_options, **kwargs) -> Tensor:
        rows = [slice(i, i + 1) for i in range(len(x))]
        return torch.cat(
            [executor(x[r], timesteps[r], context[r], y[r], control, transformer_options, **kwargs) for r in rows]
        )

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "singly", run)
    return model


def pictures_singly(model: ModelPatcher) -> ModelPatcher:
    """A UNet that runs picture by picture, all sides of one together, under the options of the whole batch."""

    def run(executor, x, timesteps, context, y, control, transformer_options, **kwargs) -> Tensor:
        batch = len(x) // len(transformer_options["cond_or_uncond"])
        out = torch.empty_like(x)
        for picture in range(batch):
            rows = slice(picture, None, batch)
            out[rows] = executor(
                x[rows], timesteps[rows], context[rows], y[rows], control, transformer_options, **kwargs
            )
        return out

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "pictures", run)
    return model


def in_windows(model: ModelPatcher, pictures: Sequence[list[int]]) -> ModelPatcher:
    """ComfyUI-AnimateDiff-Evolved: windows of pictures one after another, named in `ad_params`."""

    def run(executor, base, conds, x: Tensor, timestep: Tensor, model_options: dict) -> list[Tensor]:
        out = [torch.zeros_like(x) for _ in conds]
        for window in pictures:
            model_options["transformer_options"]["ad_params"] = {"sub_idxs": window}
            found = executor(base, conds, x[window], timestep[window], model_options)
            for whole, part in zip(out, found, strict=True):
                whole[window] = part
        return out

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "windows", run)
    return model


def without_precision(model: ModelPatcher) -> ModelPatcher:
    """ComfyUI-Advanced-ControlNet's blocks: their options lack `attn_precision`."""

    def forget(q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> tuple[Tensor, Tensor, Tensor]:
        del extra_options["attn_precision"]
        return q, k, v

    model = model.clone()
    model.set_model_attn2_patch(forget)
    return model


def keys_and_values_apart(model: ModelPatcher, clip: CLIP) -> tuple[ModelPatcher, CLIP]:
    """ComfyUI-ppm's CLIPNegPip: each token twice in the conditioning, the first of both for K, the second for V."""

    def twice(encoder, tokens):
        out, *rest = type(encoder).encode_token_weights(encoder, tokens)
        return out.repeat_interleave(2, dim=1), *rest

    model, clip = model.clone(), clip.clone()
    for name in ("clip_l", "clip_g"):
        encoder = getattr(clip.patcher.model, name)
        clip.patcher.add_object_patch(f"{name}.encode_token_weights", partial(twice, encoder))
    model.set_model_attn2_patch(lambda q, k, v, extra_options: (q, k[:, 0::2], v[:, 1::2]))
    return model, clip
