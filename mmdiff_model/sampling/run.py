"""One sampling run with subjects: installs multimodal cross-attention for it and decides who acts when.

The model carries its LoRAs as weight patches and wrappers around sampling. Keys and values of the subject tokens, and
the attention patches that use them, belong to the run: clones share the latest run's record and nothing else.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import comfy.patcher_extension
import comfy.utils
import torch
from comfy.ldm.modules.attention import CrossAttention
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..checkpoint import Checkpoint
from ..lora import add_lora, unet_patches
from ..schedule import Schedule, keep_phases, resolve_steps, steps_before, whole_steps
from ..subject import Subject
from . import routing as routings
from .attention import STEP, MultimodalCrossAttention
from .conditionings import Conditioning, add_twins, find_conditionings, share_phases
from .patches import OURS, Patch, attention_patches, of_hooks, replaced_by_hooks
from .projection import BlockKey, Projected, SubjectProjections, image_projections
from .record import WRAPPER_KEY, Record, find_sampling
from .routing import AUTO, MASKS, OFF
from .routing.auto import reading_blocks
from .rows import Call, call_rows, pictures_of, rows_by_text
from .step import Step

STEPS_BEFORE = "mmdiff_steps_before"
STRETCH = 1.1  # a region is stretched by more where its shape is not the picture's

logger = logging.getLogger(__name__)


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
    if find_sampling(model) is not None:
        raise ValueError(
            "model: this model already carries MM-Diff subjects. Connect all subjects to one MM-Diff node, and to it "
            "the MODEL from before the other."
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

    `record` is of the latest finished run.
    """

    def __init__(
        self, checkpoint: Checkpoint, subjects: tuple[Subject, ...], fuse_scale: float, schedule: Schedule, routing: str
    ):
        self.checkpoint = checkpoint
        self.subjects = subjects
        self.fuse_scale = fuse_scale
        self.schedule = schedule
        self.routing = routing
        self.regions = [subject.region for subject in subjects]
        routings.check(routing, self.regions)
        self.record: Record | None = None

    def __call__(self, executor, guider, sigmas: Tensor, extra_args: dict, callback, noise: Tensor, *args, **kwargs):
        transformer_options = extra_args["model_options"]["transformer_options"]
        before = transformer_options.get(STEPS_BEFORE, 0)
        share_phases(guider.conds)
        add_twins(guider.conds)
        resolve_steps(guider.conds, sigmas, before)
        keep_phases(guider.conds, guider.inner_model.model_sampling)
        run = Run(self, guider, sigmas, before, noise)
        patches = (
            *attention_patches(extra_args["model_options"], guider.model_patcher, self.checkpoint),
            *of_hooks(guider.conds),
        )
        run.install(transformer_options)
        samples = executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        self.record = Record(
            sigmas=tuple(sigmas.tolist()),
            before=before,
            ranges=tuple(run.ranges),
            batch=run.batch,
            latent=run.latent,
            conditionings=tuple(replace(c, text=c.text.new_empty(0)) for c in run.conditionings.values()),
            patches=(Patch("attn2 replace", OURS, len(run.projected)), *patches),
            routed=run.routing.decided(run.batch, len(self.subjects)) if run.routed else None,
            said=tuple(run.said),
        )
        return samples


class Run:
    """What one sampling run needs: projected subject tokens, sigma ranges, its conditionings, its routing."""

    def __init__(self, plan: SubjectSampling, guider, sigmas: Tensor, before: int, noise: Tensor):
        self.model = guider.inner_model
        strengths = [plan.fuse_scale * subject.strength for subject in plan.subjects]
        tokens = [
            subject.tokens.flatten(0, 1)[: None if strength else 0]
            for subject, strength in zip(plan.subjects, strengths, strict=True)
        ]
        scale = torch.cat(
            [torch.full((len(group),), strength) for group, strength in zip(tokens, strengths, strict=True)]
        )
        projections = image_projections(self.model, plan.checkpoint.unet_lora)
        self.projections = SubjectProjections(projections, torch.cat(tokens), scale)
        self.projected = self.projections.of(self.model)
        if not torch.stack([side.isfinite().all() for pair in self.projected.values() for side in pair]).all():
            raise ValueError(
                "subjects: their tokens give numbers that are not finite with this model, and would paint black. A "
                "subject or the checkpoint is damaged: load or encode them anew."
            )
        self.modules = {projection.block: projection.module for projection in projections}
        self.lengths = tuple(len(group) for group in tokens)
        self.ranges = [
            plan.schedule.sigma_range(subject, self.model.model_sampling, sigmas, before) for subject in plan.subjects
        ]
        self.batch, self.latent = len(noise), tuple(noise.shape[-2:])
        self.conditionings = find_conditionings(guider.conds, plan.subjects)
        widths = {block: k.shape[-1] for block, (k, _) in self.projected.items()}
        self.routing = routings.make(plan.routing, plan.regions, self.latent, reading_blocks(widths))
        self.routed = False
        self.said: dict[str, None] = {}
        self.seen: tuple = (object(), None)  # no call's
        for message in (
            *doubts(plan.subjects, self.conditionings.values(), plan.routing),
            *idle(plan, self.ranges, whole_steps(sigmas)),
            *(stretched(plan.subjects, self.latent) if plan.routing == MASKS else ()),
        ):
            self.say(message)

    def say(self, message: str) -> None:
        """A warning, once in a run."""
        if message not in self.said:
            self.said[message] = None
            logger.warning("MM-Diff: %s", message)

    def install(self, transformer_options: dict) -> None:
        """Puts the attention patches over whatever the run's attn2 patches are, and the gate around each model call."""
        patches = transformer_options.setdefault("patches_replace", {}).setdefault("attn2", {})
        for block, image in self.projected.items():
            own = getattr(self.module(self.model, block), "comfy_attention", None)
            previous = patches.get(block, patches.get(block[:2]))
            patches[block] = MultimodalCrossAttention(block, image, previous, own, self.late_call)
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, WRAPPER_KEY, self.gate, transformer_options
        )

    def module(self, model: BaseModel, block: BlockKey) -> CrossAttention:
        return comfy.utils.get_attr(model, self.modules[block])

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
        ignores, named after what a trace depends on, makes it trace another call anew.
        """
        model = executor.class_obj
        image = self.projections.of(model)
        step = self.step(model, transformer_options, len(x), tuple(x.shape[-2:]), c_crossattn)
        transformer_options = {**transformer_options, STEP: step}
        replaced = replaced_by_hooks(model.current_patcher.current_hooks)
        if replaced or image is not self.projected:
            transformer_options["patches_replace"] = for_call(transformer_options["patches_replace"], image, replaced)
        kwargs[f"mmdiff {step and step.trace} {sorted(replaced)}"] = None
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def late_call(self, options: dict) -> tuple[Step | None, Projected, dict]:
        """What `gate` gives a call, for one that passed by it, from an attention's options; one for all of them."""
        call = options.get("uuids"), options.get("sigmas")
        if any(new is not old for new, old in zip(call, self.seen, strict=True)):
            self.seen = call
            size = tuple(options.get("original_shape", self.latent)[-2:])
            step = self.step(self.model, options, None, size, None)
            replaced = replaced_by_hooks(self.model.current_patcher.current_hooks)
            self.late = step, self.projections.of(self.model), replaced
        return self.late

    def step(
        self, model: BaseModel, options: dict, count: int | None, size: tuple[int, int], text: Tensor | None
    ) -> Step | None:
        """What a call of `count` rows (None: as the host has them) and latents of `size` does; text (b, tokens, width).

        None where no subject acts at this sigma or no row is conditional.
        """
        if "uuids" not in options:
            self.say("another node runs the model without the sampler's conditionings. Its rows get no subject.")
            return None
        sigma = float(options["sigmas"][0])
        acting = frozenset(i for i, (first, last) in enumerate(self.ranges) if last < sigma <= first)
        parts = [self.conditionings.get(uuid) for uuid in options["uuids"]]
        if None in parts:
            self.say("another node samples a prompt that is not among the sampler's. It gets no subject.")
        known = tuple(dict.fromkeys(part for part in parts if part is not None))
        if not any(acting.intersection(part.subjects) for part in known):
            return None
        pictures = pictures_of(options, self.batch)
        rows = call_rows(parts, pictures)
        if count not in (None, len(rows)):
            rows = rows_by_text(text, known, [part.text for part in known])

        def keys(block: BlockKey) -> tuple[tuple[Conditioning, ...], list[Tensor]]:
            to_k = self.module(model, block).to_k
            return known, [to_k(part.text.to(device, model.get_dtype_inference())) for part in known]

        device = next(iter(self.projections.of(model).values()))[0].device
        call = Call(rows, tuple(options["cond_or_uncond"]), size)
        step = Step(call, acting, self.lengths, self.latent, self.routing, known, keys, self.say)
        step.prepare(device)
        self.routed |= any(part.subjects and not self.routing.lacks(part) for part in step.parts)
        return step


def doubts(subjects: Sequence[Subject], conditionings: Iterable[Conditioning], routing: str) -> Iterator[str]:
    """What a run's prompts and subjects leave open, in words."""
    conditionings = list(conditionings)
    for who in dict.fromkeys(who for conditioning in conditionings for who in conditioning.missing):
        yield (
            f"positive: a prompt calls subject {who} of its text node, which the model does not carry; it gets its "
            "text alone. Give Apply MM-Diff to Model and MM-Diff Text Encode the same subjects."
        )
    called = {subject for conditioning in conditionings for subject in conditioning.subjects}
    for index, subject in enumerate(subjects):
        if index not in called:
            yield (
                f"subjects: no positive prompt calls subject {index + 1}"
                + (f" ('{subject.name}')" if subject.name else "")
                + f" of the model, so it is in no picture. Put <|subj:{index + 1}|> after its class word in a prompt "
                "of MM-Diff Text Encode or Apply MM-Diff. (ConditioningConcat and ConditioningAverage keep only the "
                "triggers of conditioning_to.)"
            )
    positive = [c for c in conditionings if c.subjects or c.missing]
    if any(not c.triggers for c in positive) and any(c.triggers for c in positive):
        yield (
            "positive: a prompt without triggers stands beside prompts with them, and gets every subject of the model. "
            "If it is to show none, choose routing 'masks', so that each stays in its region, or write its words into "
            "the prompts with triggers."
        )
    if routing != OFF and any(c.joined and len(c.subjects) > 1 for c in conditionings):
        yield (
            "positive: ConditioningConcat put another text behind a prompt with triggers. Class words in that text are "
            "not kept out of other subjects' regions; write both into one prompt."
        )
    if routing == AUTO and any(not c.triggers and len(c.subjects) > 1 for c in conditionings):
        yield (
            "positive: a prompt has no triggers, so routing 'auto' cannot read its regions and is 'off' there. Write "
            "it in MM-Diff Text Encode or Apply MM-Diff; with ConditioningConcat or ConditioningAverage, connect that "
            "one to conditioning_to."
        )


def idle(plan: SubjectSampling, ranges: Sequence[tuple[float, float]], steps: int) -> Iterator[str]:
    """Which subjects act at no time of a schedule of so many steps, or nowhere, in words."""
    for index, (subject, (first, last)) in enumerate(zip(plan.subjects, ranges, strict=True)):
        who = f"subject {index + 1}" + (f" ('{subject.name}')" if subject.name else "")
        later = first < 0 and plan.schedule.start_merge_step < steps
        if first <= last and not later and plan.fuse_scale * subject.strength:
            yield (
                f"start_percent: {who} acts in no part of sampling, as the ranges of Apply MM-Diff and MM-Diff Subject "
                "Region leave it none. Widen them, or lower start_merge_step."
            )
        if plan.routing == MASKS and subject.region is not None and not subject.region.any():
            yield f"mask: the region of {who} is empty, so it is nowhere. Paint one in MM-Diff Subject Region."


def stretched(subjects: Sequence[Subject], latent: tuple[int, int]) -> Iterator[str]:
    """Which regions have another shape than the picture, in words."""
    for index, subject in enumerate(subjects):
        if subject.region is None:
            continue
        (height, width), (h, w) = subject.region.shape, latent
        if not 1 / STRETCH < height * w / (width * h) < STRETCH:
            yield (
                f"mask: the region of subject {index + 1} is {width} x {height} pixels, which is not the shape of the "
                f"picture ({w} x {h} latents), so it is stretched. Paint it on a picture of that shape. Where a node "
                "samples tiles one after another, each of them gets the whole region: use one subject per pass there."
            )


def for_call(replaces: dict[str, dict], image: Projected, replaced: dict[tuple, Callable]) -> dict[str, dict]:
    """A call's replace patches with K and V of the weights that the call sees, over those that its hooks bring."""
    attn2 = {
        block: patch.for_call(image, replaced) if isinstance(patch, MultimodalCrossAttention) else patch
        for block, patch in replaces["attn2"].items()
    }
    return {**replaces, "attn2": attn2}
