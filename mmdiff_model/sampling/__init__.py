"""Sampling with subjects: what a run installs, what each model call does, where each subject may go."""

from .run import apply_subjects, last_routing, why_no_routing

__all__ = ["apply_subjects", "last_routing", "why_no_routing"]
