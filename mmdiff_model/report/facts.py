"""Everything that a report tells, gathered. What is missing becomes a note; nothing is raised."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..evaluation.matching import Box
from ..sampling.conditionings import Conditioning, read_conditioning
from ..sampling.patches import Patch, attention_patches
from ..sampling.record import NO_SUBJECTS, Record, find_sampling, why_no_routing
from ..sampling.routing import AUTO, OFF
from ..sampling.run import SubjectSampling, doubts
from ..subject import Subject, identify
from ..text import WrittenWord
from .likeness import clip_likeness, face_likeness

FACE, CLIP = "face", "CLIP"
NOT_SAMPLED = "model: nothing was sampled with it yet, so that steps and routing are not known. "
WAIT = "Connect the KSampler's decoded pictures to images, so that the report waits for them."
OTHERS = "Connect the MODEL that the pictures were sampled with, or a copy of it from before that."
NO_IMAGES = "images: none are connected, so that the report may tell of the sampling before. "


@dataclass(frozen=True)
class SubjectFacts:
    """A subject by its number from 1.

    words: its class words; percents: its part of sampling in 0..1; steps: the first and the last in which it acted,
    counted over the whole schedule, and their sigmas, None where it acted in none or nothing was sampled. By picture:
    coverage, the mean of its routing weights (None where it was not routed), and likeness by FACE and CLIP.
    """

    number: int
    subject: Subject
    words: tuple[WrittenWord, ...]
    percents: tuple[float, float]
    steps: tuple[int, int] | None = None
    sigmas: tuple[float, float] | None = None
    coverage: tuple[float | None, ...] = ()
    likeness: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """sampling, record: None where the model carries no subjects, or was not sampled with. boxes: faces by picture and
    subject. notes: sentences on what is missing or doubtful."""

    sampling: SubjectSampling | None
    record: Record | None
    subjects: tuple[SubjectFacts, ...]
    prompts: tuple[Conditioning, ...]
    patches: tuple[Patch, ...]
    boxes: tuple[tuple[Box | None, ...], ...]
    notes: tuple[str, ...]


def gather(
    model: ModelPatcher,
    positive: list | None = None,
    pictures: Sequence[Tensor] = (),
    face_analysis: Any = None,
    clip_vision: ClipVisionModel | None = None,
    trouble: Sequence[str] = (),
) -> Facts:
    """The facts of a MODEL, of a CONDITIONING where nothing was sampled yet, and of pictures (H, W, 3) in 0..1.

    trouble: sentences on pictures that cannot be read.
    """
    sampling = find_sampling(model)
    record = sampling and sampling.record
    carried = sampling.subjects if sampling else ()
    notes, prompts, boxes = [*trouble], (), ()
    likeness: dict[str, list[tuple[float, ...]]] = {}
    with noting(notes, "positive: it was not read"):
        prompts = prompts_of(record, positive, carried)
    notes += notes_of(model, sampling, record, prompts, None if trouble else len(pictures))
    if sampling and pictures and face_analysis is not None:
        with noting(notes, "face_analysis: faces were not compared"):
            matches = face_likeness(face_analysis, carried, pictures)
            likeness[FACE] = list(zip(*(match.similarities for match in matches), strict=True))
            boxes = tuple(match.boxes for match in matches)
    if sampling and pictures and clip_vision is not None:
        with noting(notes, "clip_vision: pictures were not compared"):
            cosines = clip_likeness(clip_vision, sampling.checkpoint, carried, pictures)
            likeness[CLIP] = [tuple(row) for row in cosines.tolist()]
    if not (pictures or trouble) and (face_analysis is not None or clip_vision is not None):
        notes.append("images: none are connected, so that there is nothing to compare with the subjects.")
    subjects = [
        facts_of(sampling, record, prompts, index, {metric: rows[index] for metric, rows in likeness.items()})
        for index in range(len(carried))
    ]
    patches = record and record.patches
    if patches is None:
        patches = attention_patches(model.model_options, model, sampling and sampling.checkpoint)
    return Facts(sampling, record, tuple(subjects), prompts, tuple(patches), boxes, tuple(notes))


@contextmanager
def noting(notes: list[str], problem: str) -> Iterator[None]:
    """Adds a note in place of whatever is raised: what is connected may be any pack's, and a report stops no graph."""
    try:
        yield
    except Exception as error:
        notes.append(f"{problem} ({told(error)}).")


def told(error: Exception) -> str:
    return str(error).rstrip(".") if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def prompts_of(record: Record | None, positive: list | None, carried: Sequence[Subject]) -> tuple[Conditioning, ...]:
    """The positive prompts of a run, or of a CONDITIONING; a prompt's phases are one prompt."""
    if record:
        found = [prompt for prompt in record.conditionings if prompt.subjects or prompt.missing]
    else:
        identities = [identify(subject) for subject in carried]
        found = [
            read_conditioning(number, entry, text, entry.get("area"), identities, negative=False)
            for number, (text, entry) in enumerate(positive or ())
        ]
    return tuple({(p.subjects, p.area, p.missing, p.triggers, p.written): p for p in found}.values())


def facts_of(
    sampling: SubjectSampling,
    record: Record | None,
    prompts: Sequence[Conditioning],
    index: int,
    likeness: dict[str, tuple[float, ...]],
) -> SubjectFacts:
    subject = sampling.subjects[index]
    words = dict.fromkeys(word for prompt in prompts for word in prompt.written if word.subject == index)
    steps, sigmas, coverage = None, None, ()
    if record:
        acted = record.steps(index)
        if acted and subject.strength and sampling.fuse_scale:
            steps = (record.before + acted[0], record.before + acted[-1])
            sigmas = (record.sigmas[acted[0] - 1], record.sigmas[acted[-1] - 1])
        if record.routed is not None:
            coverage = tuple(
                None if sampling.routing == AUTO and not weights.any() else float(weights.mean())
                for weights in record.routed[:, index]
            )
    percents = sampling.schedule.percents(subject)
    return SubjectFacts(index + 1, subject, tuple(words), percents, steps, sigmas, coverage, likeness)


def notes_of(
    model: ModelPatcher,
    sampling: SubjectSampling | None,
    record: Record | None,
    prompts: Sequence[Conditioning],
    pictures: int | None,
) -> list[str]:
    """What the facts leave open, as sentences; pictures: how many there are, None where they cannot be read."""
    if sampling is None:
        return [f"model: {NO_SUBJECTS}"]
    notes = []
    if record is None:
        notes.append(NOT_SAMPLED + (WAIT if pictures == 0 else OTHERS))
        if prompts:
            notes += doubts(sampling.subjects, prompts, sampling.routing)
        else:
            notes.append("positive: none is connected, so that class words are not known before sampling.")
    else:
        if pictures == 0:
            notes.append(NO_IMAGES + WAIT)
        elif pictures not in (None, record.batch):
            notes.append(
                f"images: there are {pictures}, and the latest sampling with this MODEL made {record.batch}. Steps and "
                "routing are told of that sampling."
            )
        notes += record.said
        if record.routed is None and sampling.routing != OFF:
            notes.append(f"routing: {why_no_routing(model)}")
    return notes
