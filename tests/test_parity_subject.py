"""CLS, patch features and subject tokens of reference photos equal the released code's."""

import pytest
import torch

from mmdiff_model.vision import encode_cls, encode_patches
from reference import CASES, PATCHES, TOKENS, assert_close, load

pytestmark = pytest.mark.hosts

CASES_WITH_INPUTS = [case for case in CASES if "inputs_of" not in load(case).config]


@pytest.fixture(scope="module", params=CASES_WITH_INPUTS)
def reference(request):
    return load(request.param)


def test_cls(reference, checkpoint, tiny):
    photos, _ = reference.inputs()
    cls = encode_cls(tiny.clip_vision, checkpoint, photos[: len(reference.values["cls"])])
    assert_close(cls, reference.values["cls"], TOKENS)


def test_cls_head(reference, checkpoint):
    heads = checkpoint.adapter.model.cls_head(reference.values["cls"])
    for head, expected in zip(heads, (reference.values["cls_1"], reference.values["cls_2"]), strict=True):
        assert_close(head, expected, TOKENS)


def test_patches_come_from_the_base_encoder(reference, checkpoint, tiny):
    photos, faces = reference.inputs()
    encode_cls(tiny.clip_vision, checkpoint, photos)
    patches = encode_patches(tiny.clip_vision, [face.crop for face in faces])
    assert_close(patches[:, PATCHES], reference.values["patches"], 2e-5)


def test_tokens(reference, checkpoint, tiny):
    tokens = torch.cat([subject.tokens for subject in reference.subjects(checkpoint, tiny.clip_vision)])
    assert_close(tokens, reference.values["tokens"], TOKENS)
