"""The scores of generated pictures against their prompt and the subjects' photos.

CLIP-T is the cosine of picture and prompt (CLIPScore without its scale). CLIP-I and DINO are the mean cosine of the
whole picture with all photos of a subject (DreamBooth). Faces are matched (FastComposer).
"""

from collections.abc import Callable, Sequence

from comfy.sd1_clip import escape_important, token_weights, unescape_important
from torch import Tensor

from ..prompt import strip_triggers
from .encoders import ClipEncoder, PictureEncoder
from .matching import FaceMatch, FaceMatcher
from .report import Report, Score


def plain_prompt(prompt: str) -> str:
    """The prompt's words alone: no triggers, no (weights:1.2), one space between words."""
    parts = token_weights(escape_important(strip_triggers(prompt)), 1.0)
    return " ".join(unescape_important("".join(text for text, _ in parts)).split())


def evaluate(
    pictures: Sequence[Tensor],
    prompt: str,
    subjects: Sequence[Sequence[Tensor]],
    clip: ClipEncoder | None = None,
    dino: PictureEncoder | None = None,
    faces: FaceMatcher | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Report:
    """Pictures (H, W, 3) in 0..1 and each subject's photos -> every score that the given models allow.

    `progress` is called once after CLIP, DINO and each picture's faces.
    """
    prompt = plain_prompt(prompt)
    scores: list[Score] = []
    matches: list[FaceMatch] = []
    models = {}
    if clip is not None:
        models["clip"] = clip.name
        embedded = clip.embed(pictures)
        scores.append(Score("CLIP-T", tuple((embedded @ clip.embed_text(prompt)).tolist())))
        scores += picture_scores("CLIP-I", embedded, [clip.embed(photos) for photos in subjects])
        progress()
    if dino is not None:
        models["dino"] = dino.name
        scores += picture_scores("DINO", dino.embed(pictures), [dino.embed(photos) for photos in subjects])
        progress()
    if faces is not None:
        models["face"] = faces.name
        for picture in pictures:
            matches.append(faces.match(picture))
            progress()
        scores += face_scores(matches)
    return Report(
        prompt=prompt,
        photos=tuple(len(photos) for photos in subjects),
        models=models,
        scores=tuple(scores),
        boxes=tuple(match.boxes for match in matches),
    )


def picture_scores(metric: str, pictures: Tensor, subjects: Sequence[Tensor]) -> list[Score]:
    """Unit vectors of pictures (n, d) and of each subject's photos (m, d) -> one Score of n mean cosines a subject."""
    return [
        Score(metric, tuple((pictures @ photos.T).mean(dim=1).tolist()), number)
        for number, photos in enumerate(subjects, start=1)
    ]


def face_scores(matches: Sequence[FaceMatch]) -> list[Score]:
    """One Score a subject, and with several the minimum over them."""
    columns = zip(*(match.similarities for match in matches), strict=True)
    scores = [Score("face", values, number) for number, values in enumerate(columns, start=1)]
    if len(scores) > 1:
        scores.append(Score("face minimum", tuple(match.minimum for match in matches)))
    return scores
