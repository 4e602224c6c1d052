"""Latents of the bundled demo models, painted without a server."""

import sys

import torch
from torch import Tensor

from conftest import pack
from helpers import sample

DEMO_LATENTS = "MMDIFF_DEMO_LATENTS"  # names the file with those of an ordinary host
PROMPT = "a cat<|subj|> waving in the snow"


def paint_demo() -> tuple[tuple, Tensor]:
    """What Demo Models gives, and the latents of two steps with a demo character."""
    nodes = {name: sys.modules[f"{pack.__name__}.nodes.{name}"] for name in ("demo", "encode_subject", "apply")}
    models = nodes["demo"].MMDiffDemoModels.execute().result
    model, clip, _, vision, mmdiff = models
    picture = nodes["demo"].MMDiffDemoCharacter.execute("cat", 1).result[0]
    encode = {"face": "largest", "face_index": 1, "cls_from": "first photo (as released)"}
    subject = nodes["encode_subject"].MMDiffEncodeSubject.execute(mmdiff, vision, picture, **encode).result[0]
    times = {"fuse_scale": 1.0, "start_percent": 0.0, "end_percent": 1.0, "start_merge_step": 0}
    words = {"positive": PROMPT, "negative": "", "routing": "off", "negative_fusion": "as released"}
    apply = nodes["apply"].MMDiffApply.execute(
        model=model, clip=clip, mmdiff=mmdiff, subjects={"subject_1": subject}, **words, **times
    )
    patched, positive, negative = apply.result[:3]
    text = type("Text", (), {"positive": positive, "negative": negative})
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    return models, sample(patched, text, noise=noise)
