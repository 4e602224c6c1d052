"""A report in plain lines, and as JSON."""

import json
from collections.abc import Iterator

from ..sampling.conditionings import Conditioning
from ..sampling.patches import OURS, Patch
from ..text import WrittenWord
from .facts import CLIP, FACE, Facts, SubjectFacts

FORMAT, FORMAT_VERSION = "mmdiff_report", 1
MEASURED = {FACE: "face, with the one of its thumbnail", CLIP: "whole picture, by CLIP"}


def as_text(facts: Facts) -> str:
    parts = ["\n".join(heading(facts))]
    for subject in facts.subjects:
        parts.append("\n".join([who(subject), *(f"  {line}" for line in lines_of(facts, subject))]))
    for title, lines in sections(facts):
        parts.append("\n".join([title, *(f"  {line}" for line in lines)]))
    return "\n\n".join(parts)


def heading(facts: Facts) -> Iterator[str]:
    """The checkpoint with its settings, and the latest sampling."""
    if (sampling := facts.sampling) is not None:
        yield (
            f"checkpoint {sampling.checkpoint.name} ({sampling.checkpoint.variant}), fuse_scale {sampling.fuse_scale:g}"
            f", routing {sampling.routing}"
        )
    if (record := facts.record) is not None:
        steps = len(record.sigmas) - 1
        began = f" after {record.before} of another sampler" if record.before else ""
        height, width = record.latent
        yield (
            f"latest sampling: {counted(steps, 'step')}{began}, sigma {record.sigmas[0]:.3g} to "
            f"{record.sigmas[-1]:.3g}, {counted(record.batch, 'picture')} of {width} x {height} latents"
        )


def sections(facts: Facts) -> Iterator[tuple[str, list[str]]]:
    """What is told beside the subjects, each section with its title."""
    if facts.prompts:
        yield "Prompts", [f"{i}. {prompt_line(prompt)}" for i, prompt in enumerate(facts.prompts, start=1)]
    yield "Patches on attention", [patch_line(patch) for patch in facts.patches] or ["none"]
    if facts.notes:
        yield "Notes", list(facts.notes)


def who(facts: SubjectFacts) -> str:
    return f"Subject {facts.number}" + (f" '{facts.subject.name}'" if facts.subject.name else "")


def lines_of(facts: Facts, found: SubjectFacts) -> Iterator[str]:
    """Everything about one subject, a fact a line."""
    subject = found.subject
    photos, group = subject.tokens.shape[:2]
    scores = ", ".join(f"{score:.2f}" for score in subject.scores)
    yield counted(photos, "photo") + (f", faces found with a score of {scores}" if scores else "")
    if subject.outliers:
        yield f"photo {', '.join(map(str, subject.outliers))} looks unlike the others"
    yield f"{photos * group} tokens in the image branch, {group} for each photo; strength {subject.strength:g}"
    if found.words:
        yield "class word " + ", ".join(map(word_line, found.words))
    elif facts.prompts:
        yield "no class word: no trigger calls it"
    yield range_line(facts, found)
    if (region := subject.region) is not None:
        yield f"region of {region.shape[1]} x {region.shape[0]} px, {region.mean():.0%} of it white"
    if found.coverage:
        yield "coverage by routing " + ", ".join("not routed" if c is None else f"{c:.0%}" for c in found.coverage)
    for metric, values in found.likeness.items():
        yield f"likeness, {MEASURED[metric]}: " + ", ".join(f"{value:.2f}" for value in values)


def range_line(facts: Facts, found: SubjectFacts) -> str:
    start, end = found.percents
    if start >= end:
        return "acts in no part of sampling"
    text = f"acts from {start:.1%} to {end:.1%} of sampling"
    if facts.record is None:
        return text
    if not found.subject.strength or not facts.sampling.fuse_scale:
        return f"{text}, by text alone (strength 0)"
    if found.steps is None or found.sigmas is None:
        return f"{text}, in no step of the latest one"
    steps = facts.record.before + len(facts.record.sigmas) - 1
    return (
        f"{text}: steps {found.steps[0]} to {found.steps[1]} of {steps}, sigma {found.sigmas[0]:.3g} to "
        f"{found.sigmas[1]:.3g}"
    )


def word_line(word: WrittenWord) -> str:
    return f"'{word.word}' (token {word.position}, {word.token!r})"


def prompt_line(prompt: Conditioning) -> str:
    if not prompt.triggers:
        text = "has no trigger, and gets every subject in the image branch"
    elif prompt.subjects:
        text = f"calls subject {', '.join(str(subject + 1) for subject in prompt.subjects)}"
    else:
        text = "calls no subject of this MODEL"
    if prompt.missing:
        text += f"; calls {', '.join(prompt.missing)} of its text node, which the MODEL does not carry"
    return text + ("" if prompt.area is None else f"; in an area {prompt.area} (height, width, y, x)")


def patch_line(patch: Patch) -> str:
    return f"{patch.place}: {patch.owner}" + (f", {patch.count} places" if patch.count > 1 else "")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def as_json(facts: Facts) -> str:
    sampling, record = facts.sampling, facts.record
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": sampling
        and {
            "checkpoint": sampling.checkpoint.name,
            "variant": sampling.checkpoint.variant,
            "hash": sampling.checkpoint.hash,
            "fuse_scale": sampling.fuse_scale,
            "routing": sampling.routing,
        },
        "sampling": record
        and {
            "sigmas": record.sigmas,
            "steps_before": record.before,
            "pictures": record.batch,
            "latent": {"height": record.latent[0], "width": record.latent[1]},
        },
        "subjects": [subject_json(found) for found in facts.subjects],
        "prompts": [
            {
                "subjects": [subject + 1 for subject in prompt.subjects],
                "missing": prompt.missing,
                "triggers": prompt.triggers,
                "area": prompt.area,
            }
            for prompt in facts.prompts
        ],
        "patches": [{**patch._asdict(), "ours": patch.owner == OURS} for patch in facts.patches],
        "notes": facts.notes,
    }
    return json.dumps(data, indent=2, ensure_ascii=False)


def subject_json(found: SubjectFacts) -> dict:
    subject = found.subject
    return {
        "number": found.number,
        "name": subject.name,
        "photos": len(subject.tokens),
        "face_scores": subject.scores,
        "outliers": subject.outliers,
        "tokens": subject.tokens.shape[0] * subject.tokens.shape[1],
        "strength": subject.strength,
        "words": [{"word": w.word, "token": w.token, "position": w.position} for w in found.words],
        "percents": found.percents,
        "steps": found.steps,
        "sigmas": found.sigmas,
        "region": subject.region is not None,
        "coverage": found.coverage,
        "likeness": found.likeness,
    }
