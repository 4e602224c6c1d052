"""The scores of generated pictures against their prompt and the subjects' photos.

CLIP-T is the cosine of picture and prompt (CLIPScore without its scale). CLIP-I and DINO are the mean cosine of the
whole picture with all photos of a subject (DreamBooth). Faces are matched (FastComposer). docs/evaluation.md defines
them all.
"""

from collections.abc import Callable, Sequence

from comfy.sd1_clip import escape_important, token_weights, unescape_important
from torch import Tensor

from ..prompt import strip_triggers
from .boxes import BoxFinder
from .encoders import ClipEncoder, ClipVisionEncoder, PictureEncoder
from .figures import Case, Models, match_scores, measure
from .matching import FaceMatch, FaceMatcher
from .report import Report, Score, SwapMatrix


def plain_prompt(prompt: str) -> str:
    """The prompt's words alone: no triggers, no (weights:1.2), one space between words."""
    parts = token_weights(escape_important(strip_triggers(prompt)), 1.0)
    return " ".join(unescape_important("".join(text for text, _ in parts)).split())


def evaluate(
    pictures: Sequence[Tensor],
    prompt: str,
    subjects: Sequence[Sequence[Tensor]],
    clip: ClipEncoder | ClipVisionEncoder | None = None,
    dino: PictureEncoder | None = None,
    faces: FaceMatcher | None = None,
    progress: Callable[[], None] = lambda: None,
    *,
    dinov2: PictureEncoder | None = None,
    second: FaceMatcher | None = None,
    boxes: BoxFinder | None = None,
    words: Sequence[str] = (),
) -> Report:
    """Pictures (H, W, 3) in 0..1 and each subject's photos -> every score that the given models allow.

    `second` judges the faces that `faces` finds. `words` are the subjects' class words, which `boxes` looks for.
    `progress` is called once after each of CLIP, DINO and DINOv2, and each picture's faces.
    """
    prompt = plain_prompt(prompt)
    models = Models(clip, dino, dinov2, boxes)
    known = [models.embed_photos(photos) for photos in subjects]
    cases = [Case(picture, prompt, known, words, faces, second) for picture in pictures]
    figures = measure(models, cases, progress)
    used = {"clip": clip, "dino": dino, "dinov2": dinov2, "face": faces, "second face": second, "boxes": boxes}
    return Report(
        prompt=prompt,
        photos=tuple(len(photos) for photos in subjects),
        models={role: model.name for role, model in used.items() if model is not None},
        scores=tuple(
            Score(metric, tuple(of_picture.scores[metric, subject] for of_picture in figures), subject)
            for metric, subject in figures[0].scores
        ),
        boxes=tuple(of_picture.boxes for of_picture in figures) if faces is not None else (),
        protocols=tuple(
            Score(metric, tuple(of_picture.protocols[metric] for of_picture in figures))
            for metric in figures[0].protocols
        ),
        swaps=tuple(
            SwapMatrix(metric, tuple(words), tuple(of_picture.swaps[metric] for of_picture in figures))
            for metric in figures[0].swaps
        ),
    )


def face_scores(matches: Sequence[FaceMatch]) -> list[Score]:
    """One Score a subject, and with several the minimum over them."""
    rows = [match_scores(match) for match in matches]
    return [Score(metric, tuple(row[metric, subject] for row in rows), subject) for metric, subject in rows[0]]
