"""One sampling run with subjects: installs multimodal cross-attention for it and decides who acts when.

The model carries its LoRAs as weight patches and wrappers around sampling, which are immutable. Keys and values of the
subject tokens, and the attention patches that use them, belong to the run: clones share nothing, nothing stays behind.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

import comfy.patcher_extension
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..checkpoint import Checkpoint
from ..lora import add_lora, unet_patches
from ..schedule import Schedule, keep_phases, resolve_steps, steps_before
from ..subject import Subject
from ..text import CLASS_WORDS
from .attention import MultimodalCrossAttention
from .projection import Projected, SubjectProjections, image_projections
from .routing import AUTO, MASKS, OFF, MaskRouting
from .routing.auto import AttentionMaps, reading_blocks, separate
from .step import Chunk, Step

WRAPPER_KEY, STEPS_BEFORE = "mmdiff", "mmdiff_steps_before"

logger = logging.getLogger(__name__)


def last_routing(model: ModelPatcher) -> Tensor | None:
    """What the model's latest run decided, (b, subjects, h, w); None without a run, subjects or routing."""
    found = model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, WRAPPER_KEY)
    return found[0].last_routing if found else None


def apply_subjects(
    model: ModelPatcher,
    checkpoint: Checkpoint,
    subjects: Sequence[Subject],
    fuse_scale: float = 0.8,
    schedule: Schedule | None = None,
    routing: str = OFF,
) -> ModelPatcher:
    """A clone of the model with the checkpoint's LoRAs and the subjects' image branch.

    Raises ValueError where the base model is not the checkpoint's or already carries subjects, and on `masks` without a
    region.
    """
    if model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, WRAPPER_KEY):
        raise ValueError(
            "model: this model already carries MM-Diff subjects. Connect all subjects to one MM-Diff node."
        )
    try:
        patches = unet_patches(model, checkpoint.unet_lora)
    except ValueError as error:
        base = type(model.model.model_config).__name__
        raise ValueError(
            f"model: {error}; the base is {base}, the checkpoint '{checkpoint.name}' needs the SDXL model it was "
            "trained on. Connect an SDXL base model."
        ) from error
    if routing == OFF and any(subject.region is not None for subject in subjects):
        logger.warning("MM-Diff: subjects have regions, but routing is 'off' and ignores them. Choose 'masks'.")
    model = model.clone()
    add_lora(model, patches, checkpoint.lora_digest)
    model.add_wrapper_with_key(
        WrappersMP.SAMPLER_SAMPLE,
        WRAPPER_KEY,
        SubjectSampling(checkpoint, tuple(subjects), fuse_scale, schedule or Schedule(), routing),
    )
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, count_steps)
    return model


def count_steps(executor, noise: Tensor, latent: Tensor, sampler, sigmas: Tensor, *args, **kwargs):
    """OUTER_SAMPLE wrapper: notes the steps that other samplers ran before, while the sigmas still tell (see there)."""
    executor.class_obj.model_options["transformer_options"][STEPS_BEFORE] = steps_before(sigmas, noise)
    return executor(noise, latent, sampler, sigmas, *args, **kwargs)


class SubjectSampling:
    """SAMPLER_SAMPLE wrapper: prepares a Run and lets the sampler work with it.

    `last_routing` is a record for previews, (b, subjects, h, w) of the latest run's weights, or None without routing.
    """

    def __init__(
        self, checkpoint: Checkpoint, subjects: tuple[Subject, ...], fuse_scale: float, schedule: Schedule, routing: str
    ):
        self.checkpoint = checkpoint
        self.subjects = subjects
        self.fuse_scale = fuse_scale
        self.schedule = schedule
        self.auto = routing == AUTO
        self.masks = MaskRouting([subject.region for subject in subjects]) if routing == MASKS else None
        self.last_routing: Tensor | None = None

    def __call__(self, executor, guider, sigmas: Tensor, extra_args: dict, callback, noise: Tensor, *args, **kwargs):
        transformer_options = extra_args["model_options"]["transformer_options"]
        before = transformer_options.get(STEPS_BEFORE, 0)
        resolve_steps(guider.conds, sigmas, before)
        keep_phases(guider.conds, guider.inner_model.model_sampling)
        run = Run(self, guider, sigmas, before, tuple(noise.shape[-2:]))
        run.install(transformer_options)
        samples = executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        self.last_routing = run.decided()
        return samples


class Run:
    """What one sampling run needs: projected subject tokens, sigma ranges, the conditional conditionings."""

    def __init__(self, plan: SubjectSampling, guider, sigmas: Tensor, before: int, latent: tuple[int, int]):
        model = guider.inner_model
        tokens = [subject.tokens.flatten(0, 1) for subject in plan.subjects]
        strengths = [plan.fuse_scale * subject.strength for subject in plan.subjects]
        scale = torch.cat(
            [torch.full((len(group),), strength) for group, strength in zip(tokens, strengths, strict=True)]
        )
        projections = image_projections(model, plan.checkpoint.unet_lora)
        self.projections = SubjectProjections(projections, torch.cat(tokens), scale)
        self.projected = self.projections.of(model)
        self.lengths = [len(group) for group in tokens]
        self.ranges = [
            plan.schedule.sigma_range(subject, model.model_sampling, sigmas, before) if strength else (0.0, 0.0)
            for subject, strength in zip(plan.subjects, strengths, strict=True)
        ]
        self.conditionings, self.class_words = conditional(guider.conds)
        self.latent = latent
        self.masks = plan.masks
        widths = {block: k.shape[-1] for block, (k, _) in self.projected.items()}
        self.maps = AttentionMaps(reading_blocks(widths)) if plan.auto else None

    def install(self, transformer_options: dict) -> None:
        """Puts the attention patches over whatever the run's attn2 patches are, and the gate around each model call."""
        patches = transformer_options.setdefault("patches_replace", {}).setdefault("attn2", {})
        for block, image in self.projected.items():
            patches[block] = MultimodalCrossAttention(block, image, patches.get(block, patches.get(block[:2])))
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, WRAPPER_KEY, self.gate, transformer_options
        )

    def gate(
        self,
        executor,
        x: Tensor,
        t: Tensor,
        c_concat=None,
        c_crossattn=None,
        control=None,
        transformer_options=None,
        **kwargs,
    ):
        """APPLY_MODEL wrapper: tells this call's attentions what to do.

        ComfyUI's torch.compile guards every argument of the UNet but transformer_options. An argument that the UNet
        ignores, named after the call's layout, makes it trace another layout anew.
        """
        image = self.projections.of(executor.class_obj)
        step = self.step(transformer_options, next(iter(image.values()))[0].device)
        transformer_options = {**transformer_options, "mmdiff": step}
        if image is not self.projected:
            transformer_options["patches_replace"] = with_image(transformer_options["patches_replace"], image)
        kwargs[f"mmdiff {step and step.layout}"] = None
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def step(self, transformer_options: dict, device: torch.device) -> Step | None:
        """None where no subject acts at this sigma or no row is conditional."""
        sigma = float(transformer_options["sigmas"][0])
        acting = tuple(i for i, (first, last) in enumerate(self.ranges) if last < sigma <= first)
        chunks = [self.chunk(uuid, acting) for uuid in transformer_options["uuids"]]
        if not acting or not any(chunks):
            return None
        keys = None
        if len(acting) < len(self.lengths):
            kept = torch.cat([torch.full((length,), i in acting) for i, length in enumerate(self.lengths)])
            keys = kept.nonzero()[:, 0].to(device)
        # an attention couple runs prompts of its own in these rows, so the class words' positions do not hold there
        coupled = [chunk and replace(chunk, words=()) for chunk in chunks]
        by_index = dict(zip(transformer_options["cond_or_uncond"], coupled, strict=True))
        lengths = tuple(self.lengths[i] for i in acting)
        return Step(chunks, by_index, acting, lengths, keys, self.latent, self.masks, self.maps)

    def chunk(self, uuid: object, acting: tuple[int, ...]) -> Chunk | None:
        """The part of a batch that belongs to a conditioning; None for the negative ones."""
        cond = self.conditionings.get(uuid)
        if cond is None:
            return None
        text = cond["model_conds"]["c_crossattn"]
        found = self.class_words[id(text)]
        words = tuple((acting.index(subject), position) for subject, position in found if subject in acting)
        area = tuple(cond["area"]) if "area" in cond else None
        return Chunk(list(self.conditionings).index(uuid), area, words, text.cond.shape[1])

    def decided(self) -> Tensor | None:
        """The run's routing, (b, subjects, h, w) on the CPU: the masks as given, or the last maps that auto read."""
        if self.masks is not None:
            return self.masks.regions[None]
        if self.maps is None or not self.maps.maps:
            return None
        maps = next(reversed(self.maps.maps.values()))
        return separate(maps.flatten(2)).view_as(maps).cpu()


def with_image(replaces: dict[str, dict], image: Projected) -> dict[str, dict]:
    """A call's replace patches with K and V of the weights that the call sees."""
    attn2 = {
        block: patch.with_image(image[block]) if isinstance(patch, MultimodalCrossAttention) else patch
        for block, patch in replaces["attn2"].items()
    }
    return {**replaces, "attn2": attn2}


def conditional(conds: dict[str, list[dict]]) -> tuple[dict[object, dict], dict[int, tuple]]:
    """The conditionings of a run that are not negative, by uuid, and the class words of their embeddings, by identity.

    Where one side is restricted to an area, ComfyUI gives the other a copy with the same uuid but its own embeddings;
    the copies get uuids of their own here.
    """
    seen, positive, words = set(), {}, {}
    for name, entries in conds.items():
        for cond in entries:
            if cond["uuid"] in seen:
                cond["uuid"] = uuid4()
            seen.add(cond["uuid"])
            if "negative" not in name:
                positive[cond["uuid"]] = cond
                words.setdefault(id(cond["model_conds"]["c_crossattn"]), cond.get(CLASS_WORDS, ()))
    return positive, words
