"""Delayed conditioning: plain text and no image term before a subject's start, fused text and image term after it.

One schedule drives both halves. Text follows it through ComfyUI's conditioning timestep ranges, the image branch
through the same sigmas. The released pipeline counts steps (`start_merge_step`); users of ComfyUI count percents of
sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .subject import Subject

FROM_STEP, UNTIL_STEP = "mmdiff_from_step", "mmdiff_until_step"
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
            options = {"start_percent": self.start, "end_percent": self.end if self.end == 1.0 else self.end - GAP}
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

    def sigma_range(self, subject: Subject, model_sampling, sigmas: Tensor) -> tuple[float, float]:
        """The image term of a subject acts where last < sigma <= first; returns (first, last)."""
        start, end = self.percents(subject)
        first = model_sampling.percent_to_sigma(start)
        if self.start_merge_step:
            first = min(first, step_boundary(sigmas, self.start_merge_step))
        return first, model_sampling.percent_to_sigma(end) if start < end else first


def step_boundary(sigmas: Tensor, step: int) -> float:
    """A sigma between step - 1 and step of this run; below every step where the run has fewer."""
    if step >= len(sigmas) - 1:
        return -1.0
    return float(sigmas[step - 1] + sigmas[step]) / 2


def resolve_steps(conds: dict[str, list[dict]], sigmas: Tensor) -> None:
    """Gives conditionings that count steps their timestep range, now that the run's sigmas are known. In place."""
    for cond in (cond for entries in conds.values() for cond in entries):
        if FROM_STEP in cond:
            boundary = step_boundary(sigmas, cond[FROM_STEP])
            cond["timestep_start"] = min(boundary, cond.get("timestep_start", boundary))
        if UNTIL_STEP in cond:
            cond["timestep_end"] = step_boundary(sigmas, cond[UNTIL_STEP])
