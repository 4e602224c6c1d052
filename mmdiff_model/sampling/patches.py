"""Who changes a model's attention: every patch on it, by the module that it comes from."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from comfy.hooks import EnumHookScope, EnumHookType, HookGroup
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import WeightAdapterBase

from ..checkpoint import Checkpoint

PACK = __name__.rpartition(".sampling.")[0]
OURS = "MM-Diff"
AROUND = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)


class Patch(NamedTuple):
    """What is patched, whose patch it is (OURS, or the module and name of a neighbour's), and in how many places."""

    place: str
    owner: str
    count: int


def attention_patches(options: dict, patcher: ModelPatcher, checkpoint: Checkpoint | None = None) -> list[Patch]:
    """Every patch on the attentions of a model with these model_options, LoRAs on their weights among them.

    checkpoint: whose LoRAs are ours.
    """
    transformer = options.get("transformer_options", {})
    found = [*of_transformer({"wrappers": patcher.wrappers, **transformer}), *of_weights(patcher, checkpoint)]
    if "model_function_wrapper" in options:
        found.append(("around each call of the model", whose(options["model_function_wrapper"])))
    found += [(f"module {key}", whose(module)) for key, module in patcher.object_patches.items() if ".attn" in key]
    return [Patch(*key, count) for key, count in Counter(found).items()]


def of_transformer(transformer: dict) -> Iterator[tuple[str, str]]:
    """(place, owner) of each patch that transformer_options hold, those of a model or of a conditioning's hooks."""
    for name, patches in transformer.get("patches_replace", {}).items():
        if "attn" in name:
            yield from ((f"{name} replace", whose(patch)) for patch in patches.values())
    for name, patches in transformer.get("patches", {}).items():
        if "attn" in name:
            yield from ((name.replace("_", " "), whose(patch)) for patch in patches)
    if "optimized_attention_override" in transformer:
        yield "every attention function", whose(transformer["optimized_attention_override"])
    for kind in AROUND:
        for wrappers in transformer.get("wrappers", {}).get(kind, {}).values():
            yield from (("around each call of the model", whose(wrapper)) for wrapper in wrappers)


def of_hooks(conds: dict[str, list[dict]]) -> list[Patch]:
    """The attention patches that come with conditionings, each hook once."""
    groups = {entry["hooks"] for entries in conds.values() for entry in entries if entry.get("hooks")}
    hooks = {hook.hook_ref: hook for group in groups for hook in group.get_type(EnumHookType.TransformerOptions)}
    found = (f for hook in hooks.values() for f in of_transformer(hook.transformers_dict))
    return [Patch(f"{place}, with a conditioning", owner, count) for (place, owner), count in Counter(found).items()]


def replaced_by_hooks(hooks: HookGroup | None) -> dict[tuple, Callable]:
    """The attn2 replace patches that a call's hooks bring, by block. ComfyUI puts the model's own in their place."""
    return {
        block: patch
        for hook in (hooks.get_type(EnumHookType.TransformerOptions) if hooks else ())
        if hook.hook_scope == EnumHookScope.HookedOnly
        for block, patch in hook.transformers_dict.get("patches_replace", {}).get("attn2", {}).items()
    }


def of_weights(patcher: ModelPatcher, checkpoint: Checkpoint | None) -> Iterator[tuple[str, str]]:
    """(place, owner) of each patch on the weights of attentions. ComfyUI does not keep which node brought one."""
    lora = set(map(id, checkpoint.unet_lora.values())) if checkpoint else set()
    for key, patches in patcher.patches.items():
        if ".attn" in key:
            for _, patch, *_ in patches:
                ours = isinstance(patch, WeightAdapterBase) and id(patch.weights[0]) in lora
                yield "weights (LoRA)", OURS if ours else "another LoRA"


def whose(patch: object) -> str:
    """OURS, or the module and the name of a function, a method, or an object's class."""
    while isinstance(patch, partial):
        patch = patch.func
    named = patch if hasattr(patch, "__qualname__") else type(patch)
    module = named.__module__ or ""
    if module == PACK or module.startswith(f"{PACK}."):
        return OURS
    name = re.split(r"[\\/]", module)[-1].replace("_x_", ".")  # ComfyUI names a pack's module after its whole path
    return f"{name}.{named.__qualname__}"
