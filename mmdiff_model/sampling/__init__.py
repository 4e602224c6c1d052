"""Sampling with subjects: what a run installs, what each model call does, where each subject may go."""

from .record import find_sampling, last_routing, why_no_routing
from .run import apply_subjects

__all__ = ["apply_subjects", "find_sampling", "last_routing", "why_no_routing"]
