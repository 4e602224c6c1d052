"""Delayed conditioning: plain text and no image term before a subject's start, fused text and image term after it.

One schedule drives both halves. Text follows it through ComfyUI's conditioning timestep ranges, the image branch
through the same sigmas. The released pipeline counts steps (`start_merge_step`); users of ComfyUI count percents of
sampling. A phase's own range is kept beside ComfyUI's, which other nodes overwrite (ConditioningSetTimestepRange).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .subject import Subject

FROM_STEP, UNTIL_STEP, RANGE = "mmdiff_from_step", "mmdiff_until_step", "mmdiff_range"
# ComfyUI's ranges include both ends; a phase ends this much (in percent of sampling) before the next one starts
GAP = 1e-6


@dataclass(frozen=True)
class Phase:
    """A part of sampling in which the same subjects act: percents in 0..1, and the step it starts or stops at."""

    start: float
    end: float
    subjects: frozenset[int]
    from_step: int = 0
    until_step: int = 0

    def conditioning_options(self) -> dict:
        """The entries that make a conditioning act in this phase only; none for a phase that is all of sampling."""
        options = {}
        if (self.start, self.end) != (0.0, 1.0):
            start, end = self.start, self.end if self.end == 1.0 else self.end - GAP
            options = {"start_percent": start, "end_percent": end, RANGE: (start, end)}
        if self.from_step:
            options[FROM_STEP] = self.from_step
        if self.until_step:
            options[UNTIL_STEP] = self.until_step
        return options


@dataclass(frozen=True)
class Schedule:
    """When subjects act: percents of sampling in 0..1. A `start_merge_step` above 0 takes the place of the start."""

    start_percent: float = 0.0
    end_percent: float = 1.0
    start_merge_step: int = 0

    def percents(self, subject: Subject) -> tuple[float, float]:
        """The subject's own range within the schedule's."""
        start = 0.0 if self.start_merge_step else self.start_percent
        return max(start, subject.start_percent), min(self.end_percent, subject.end_percent)

    def phases(self, subjects: Sequence[Subject]) -> list[Phase]:
        """All of sampling, cut where the set of acting subjects changes."""
        ranges = [self.percents(subject) for subject in subjects]
        cuts = sorted({0.0, 1.0, *(percent for start, end in ranges if start < end for percent in (start, end))})
        phases = []
        for start, end in zip(cuts, cuts[1:], strict=False):
            acting = frozenset(i for i, (first, last) in enumerate(ranges) if first <= start and end <= last)
            if phases and phases[-1].subjects == acting:
                start = phases.pop().start
            phases.append(Phase(start, end, acting, from_step=self.start_merge_step))
        if self.start_merge_step:
            phases.insert(0, Phase(0.0, 1.0, frozenset(), until_step=self.start_merge_step))
        return phases

    def sigma_range(self, subject: Subject, model_sampling, sigmas: Tensor, before: int = 0) -> tuple[float, float]:
        """The image term of a subject acts where last < sigma <= first; (first, last); before: see resolve_steps."""
        start, end = self.percents(subject)
        first = model_sampling.percent_to_sigma(start)
        last = model_sampling.percent_to_sigma(end) if start < end else first
        if self.start_merge_step:
            highest, lowest = steps_from(sigmas, self.start_merge_step - before)
            first, last = min(first, highest), max(last, lowest)
        return first, last


def steps_from(sigmas: Tensor, step: int) -> tuple[float, float]:
    """The sigmas (highest, lowest) of a run from a step on. Those of an unsampling rise."""
    boundary = step_boundary(sigmas, step)
    return (math.inf, boundary) if rising(sigmas) else (boundary, -1.0)


def steps_until(sigmas: Tensor, step: int) -> tuple[float, float]:
    """The sigmas (highest, lowest) of a run before a step."""
    boundary = step_boundary(sigmas, step)
    return (boundary, -1.0) if rising(sigmas) else (math.inf, boundary)


def step_boundary(sigmas: Tensor, step: int) -> float:
    """A sigma between step - 1 and step of this run; beyond every step where the run has fewer, before all below 1."""
    first, last = (-1.0, math.inf) if rising(sigmas) else (math.inf, -1.0)
    if step <= 0:
        return first
    if step >= len(sigmas) - 1:
        return last
    return float(sigmas[step - 1] + sigmas[step]) / 2


def rising(sigmas: Tensor) -> bool:
    return bool(sigmas[0] < sigmas[-1])


def steps_before(sigmas: Tensor, noise: Tensor) -> int:
    """How many steps of a schedule other samplers ran before this one.

    KSamplerAdvanced and SplitSigmas cut a part out of the whole schedule's tensor, which tells where the part begins. A
    part without new noise goes on with what was begun; one with noise begins there, as with denoise below 1.
    """
    return 0 if noise.any() or sigmas.stride() != (1,) else sigmas.storage_offset()


def whole_steps(sigmas: Tensor) -> int:
    """How many steps the schedule has that these sigmas were cut from."""
    return sigmas.untyped_storage().nbytes() // sigmas.element_size() - 1


def resolve_steps(conds: dict[str, list[dict]], sigmas: Tensor, before: int = 0) -> None:
    """Gives conditionings that count steps their timestep range, now that the run's sigmas are known. In place.

    before: the steps of the schedule that other samplers ran.
    """
    for cond in (cond for entries in conds.values() for cond in entries):
        if FROM_STEP in cond:
            narrow(cond, *steps_from(sigmas, cond[FROM_STEP] - before))
        if UNTIL_STEP in cond:
            narrow(cond, *steps_until(sigmas, cond[UNTIL_STEP] - before))


def keep_phases(conds: dict[str, list[dict]], model_sampling) -> None:
    """Keeps conditionings within their phases, whatever range other nodes gave them. In place."""
    for cond in (cond for entries in conds.values() for cond in entries):
        if RANGE in cond:
            narrow(cond, *map(model_sampling.percent_to_sigma, cond[RANGE]))


def narrow(cond: dict, start: float, end: float) -> None:
    """A conditioning acts where timestep_end <= sigma <= timestep_start."""
    cond["timestep_start"] = min(start, cond.get("timestep_start", start))
    cond["timestep_end"] = max(end, cond.get("timestep_end", end))
