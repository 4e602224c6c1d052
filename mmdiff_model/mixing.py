"""Mixing subjects into one: as released (all tokens side by side), by weights, or along the sphere."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .subject import Subject


def join_tokens(subjects: Sequence[Subject]) -> Subject:
    """The released identity mixing: the first subject gives the CLS, all give their token groups."""
    return replace(subjects[0], tokens=torch.cat([subject.tokens for subject in subjects]))


def weighted_mean(subjects: Sequence[Subject], weights: Sequence[float]) -> Subject:
    """Weighted mean of CLS and of the subjects' mean token group: one group of tokens whatever the number of photos."""
    return _blend(subjects, weights, torch.lerp)


def spherical(subjects: Sequence[Subject], weights: Sequence[float]) -> Subject:
    """Like weighted_mean, but directions are blended along the great circle and lengths linearly."""
    return _blend(subjects, weights, slerp)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Vectors (..., d) from a at t = 0 to b at t = 1; parallel vectors are blended linearly."""
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    cosine = (a * b).sum(dim=-1, keepdim=True) / (length_a * length_b)
    angle = torch.acos(cosine.clamp(-1, 1))
    direction = (torch.sin((1 - t) * angle) * a / length_a + torch.sin(t * angle) * b / length_b) / torch.sin(angle)
    return torch.where(torch.sin(angle) > 1e-4, direction * torch.lerp(length_a, length_b, t), torch.lerp(a, b, t))


def check_weights(weights: Sequence[float], subjects: int) -> None:
    """Raises ValueError on more or fewer weights than subjects, one below 0 or not finite, or all 0."""
    if len(weights) != subjects:
        raise ValueError(
            f"weights: got {len(weights)} weights for {subjects} subjects. Give one for each, such as: 1, 0.5"
        )
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError("weights: they must be 0 or more and not all 0, such as: 1, 0.5")


def _blend(
    subjects: Sequence[Subject], weights: Sequence[float], between: Callable[[Tensor, Tensor, float], Tensor]
) -> Subject:
    check_weights(weights, len(subjects))
    _, largest = math.frexp(max(weights))
    weights = [math.ldexp(weight, -largest) for weight in weights]  # their sum is finite then
    cls, tokens, total = subjects[0].cls, subjects[0].tokens.mean(dim=0), weights[0]
    for subject, weight in zip(subjects[1:], weights[1:], strict=True):
        total += weight
        share = weight / total if total else 0.0
        cls = between(cls, subject.cls, share)
        tokens = between(tokens, subject.tokens.mean(dim=0), share)
    return replace(subjects[0], cls=cls, tokens=tokens[None])
