"""Seconds of encoding a subject and a prompt pair, beside plain passes of the same models."""

from .sampling import make_subject
from .turns import Setting, plural, timed


def make_encoders(vision, clip, checkpoint) -> dict[str, list[Setting]]:
    """Two plain CLIP vision passes and two plain text encodings beside a subject and a prompt pair of ours."""
    import torch

    from mmdiff_model.subject import Face, encode_subject
    from mmdiff_model.text import encode_text

    photo = torch.rand(512, 512, 3)
    face = Face(torch.nn.functional.normalize(torch.randn(512), dim=0), torch.rand(224, 224, 3))
    prompt, negative = "a man<|subj|> on the beach", "lowres, bad anatomy"

    def plain_vision(photos: int) -> None:
        for _ in range(2):
            vision.encode_image(photo.expand(photos, -1, -1, -1))

    def plain_text() -> None:
        for text in (prompt.replace("<|subj|>", ""), negative):
            clip.encode_from_tokens_scheduled(clip.tokenize(text))

    subject, tables = make_subject(1), {}
    for photos in (1, 4):
        tables[f"a subject of {plural(photos, 'photo')}"] = [
            timed("two plain CLIP vision passes", lambda photos=photos: plain_vision(photos)),
            timed(
                "encode a subject",
                lambda photos=photos: encode_subject(checkpoint, vision, [photo] * photos, [face] * photos),
            ),
        ]
    tables["a prompt pair"] = [
        timed("two plain text encodings", plain_text),
        timed("encode a prompt pair", lambda: encode_text(clip, checkpoint, [subject], prompt, negative)),
    ]
    return tables
