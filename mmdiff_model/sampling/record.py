"""What is known of a finished run, for previews and reports."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .conditionings import Conditioning
from .patches import Patch
from .routing import AUTO, OFF

if TYPE_CHECKING:
    from .run import SubjectSampling

WRAPPER_KEY = "mmdiff"
NO_SUBJECTS = "this MODEL carries no subjects. Connect the MODEL that Apply MM-Diff gave and the KSampler used."


@dataclass(frozen=True, eq=False)
class Record:
    """One sampling run of a model with subjects.

    sigmas: those of its steps and where they end; before: steps of the schedule that other samplers ran; ranges: the
    sigmas (first, last) of each subject, which acts where last < sigma <= first; latent: (H, W) of its `batch`
    pictures; routed: (b, subjects, h, w) weights on the CPU, None where nothing was routed; said: its warnings.
    """

    sigmas: tuple[float, ...]
    before: int
    ranges: tuple[tuple[float, float], ...]
    batch: int
    latent: tuple[int, int]
    conditionings: tuple[Conditioning, ...]
    patches: tuple[Patch, ...]
    routed: Tensor | None
    said: tuple[str, ...]

    def steps(self, subject: int) -> list[int]:
        """The steps of this run in which a subject acts, from 1."""
        first, last = self.ranges[subject]
        return [i for i, sigma in enumerate(self.sigmas[:-1], start=1) if last < sigma <= first]


def find_sampling(model: ModelPatcher) -> "SubjectSampling | None":
    """What a model samples with, None where it carries no subjects."""
    return next(iter(model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, WRAPPER_KEY)), None)


def last_routing(model: ModelPatcher) -> Tensor | None:
    """What the model's latest run decided, (b, subjects, h, w); None without a run, subjects or routing."""
    found = find_sampling(model)
    return None if found is None or found.record is None else found.record.routed


def why_no_routing(model: ModelPatcher) -> str:
    """Why `last_routing` has nothing, in words."""
    found = find_sampling(model)
    if found is None:
        return NO_SUBJECTS
    if found.routing == OFF:
        return "routing is 'off', so every subject may be anywhere. Choose 'masks' or 'auto' in Apply MM-Diff."
    if found.routing == AUTO:
        return "'auto' read no regions. It needs a finished sampling, and a prompt that calls two subjects or more."
    if found.record is not None:
        return "the last picture was routed 'off'; ComfyUI's log says why (tiles of another node, for example)."
    return "nothing was sampled with this MODEL yet. Connect the one that the KSampler used."
