"""What nodes refuse: the message names the input and the remedy, and the model stays as it was."""

import json
import resource
from dataclasses import replace
from types import SimpleNamespace

import comfy.clip_vision
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import pytest
import torch
from mm_diff_pack.nodes.apply import MMDiffApply, MMDiffApplyModel
from mm_diff_pack.nodes.encode_subject import MMDiffEncodeSubject
from mm_diff_pack.nodes.images import masks_from, photos_from
from mm_diff_pack.nodes.subjects import MMDiffSubjectRegion

from helpers import encode, guider_for, left_half, random_subject, run
from mmdiff_model.subject import Face, encode_subject
from mmdiff_model.vision import resize, resize_square
from tiny_pack.models import TEXT, UNET, VISION

NAN = float("nan")


@pytest.fixture(scope="module")
def subject(checkpoint):
    return random_subject(checkpoint, 1)


def apply(tiny, checkpoint, subjects, positive="a man<|subj|>", **changes):
    inputs = {
        "model": tiny.model,
        "clip": tiny.clip,
        "mmdiff": checkpoint,
        "subjects": subjects,
        "positive": positive,
        "negative": "",
        "fuse_scale": 0.8,
        "start_percent": 0.0,
        "end_percent": 1.0,
    }
    return MMDiffApply.execute(**{**inputs, **changes})


def patcher(model) -> comfy.model_patcher.ModelPatcher:
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def tiny_sd15():
    sizes = {
        "context_dim": 768,
        "model_channels": 32,
        "adm_in_channels": None,
        "num_classes": None,
        "num_heads": 2,
        "num_head_channels": -1,
        "use_linear_in_transformer": False,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
    }
    config = comfy.supported_models.SD15({**UNET, **sizes})
    config.unet_config.update(sizes)
    return patcher(comfy.model_base.BaseModel(config, device="cpu"))


def tiny_flux():
    config = comfy.supported_models.Flux(
        {
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "vec_in_dim": 32,
            "context_in_dim": 32,
            "hidden_size": 64,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 1,
            "axes_dim": [8, 12, 12],
            "theta": 10000,
            "patch_size": 2,
            "txt_ids_dims": [],
            "qkv_bias": True,
            "guidance_embed": False,
            "dtype": torch.float32,
        }
    )
    return patcher(comfy.model_base.Flux(config, device="cpu"))


@pytest.mark.parametrize(("make", "named"), [(tiny_sd15, "SD15"), (tiny_flux, "Flux")])
def test_a_base_that_is_not_sdxl_is_named(make, named, checkpoint, subject):
    with pytest.raises(ValueError, match=f"model: .*the base is {named}.*Connect an SDXL base model"):
        MMDiffApplyModel.execute(make(), checkpoint, {"subject_1": subject}, 0.8, 0.0, 1.0)


def test_a_clip_that_is_not_sdxls(tiny, checkpoint, subject):
    target = SimpleNamespace(params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer)
    options = {
        "clip_l_model_config": {**TEXT["clip_l"], "eos_token_id": 49407, "max_position_embeddings": 77},
        "dtype": torch.float32,
    }
    clip = comfy.sd.CLIP(target, model_options=options)
    with pytest.raises(ValueError, match="clip: MM-Diff needs SDXL's two text encoders.*Connect the CLIP of an SDXL"):
        apply(tiny, checkpoint, {"subject_1": subject}, clip=clip)


def test_a_clip_vision_of_another_size(checkpoint, tmp_path):
    config = tmp_path / "vision.json"
    config.write_text(json.dumps({**VISION, "hidden_size": 64}))
    vision = comfy.clip_vision.ClipVisionModel(config)
    with pytest.raises(ValueError, match=r"clip_vision: this model has width 64.*needs 128 and 96.*Load CLIP ViT-L/14"):
        encode_subject(checkpoint, vision, [torch.rand(32, 32, 3)], [Face(torch.rand(512), torch.rand(224, 224, 3))])


def test_no_subject(tiny, checkpoint):
    with pytest.raises(ValueError, match="subjects: no subject is connected"):
        apply(tiny, checkpoint, {"subject_1": None})


@pytest.mark.parametrize("change", [{"space": "0123456789abcdef"}, {"variant": "subject"}])
def test_a_subject_of_another_checkpoint(change, tiny, checkpoint, subject):
    with pytest.raises(
        ValueError, match=r"subjects.subject_2: this subject was made with another checkpoint.*Encode its photos again"
    ):
        apply(tiny, checkpoint, {"subject_1": subject, "subject_2": replace(subject, **change)})


def test_masks_without_a_region(tiny, checkpoint, subject):
    with pytest.raises(ValueError, match="routing: 'masks' needs the region"):
        apply(tiny, checkpoint, {"subject_1": subject}, routing="masks")


def test_portrait_without_face_analysis(tiny, checkpoint):
    with pytest.raises(ValueError, match="face_analysis: .*Connect Load Face Analysis"):
        MMDiffEncodeSubject.execute(checkpoint, tiny.clip_vision, torch.rand(1, 64, 64, 3))


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (torch.full((2, 8, 8, 3), NAN), "photo 1 holds NaN"),
        (torch.stack([torch.zeros(8, 8, 3), torch.full((8, 8, 3), float("inf"))]), "photo 2 holds NaN or infinite"),
        (torch.zeros(0, 8, 8, 3), "expected a batch of pictures"),
        (torch.zeros(1, 8, 8, 2), "have 2 channels"),
        (torch.full((1, 8, 8, 3), 1e300, dtype=torch.float64), "photo 1 holds NaN or infinite"),
        (
            torch.randint(0, 256, (1, 8, 8, 3), dtype=torch.uint8),
            "photo 1 has values from .* to 2.*white. Divide them by",
        ),
        (
            torch.linspace(0, 65535, 192).reshape(1, 8, 8, 3),
            "photo 1 has values from 0 to 65535.*white. Divide them by",
        ),
        (torch.linspace(-1, 1, 192).reshape(1, 8, 8, 3), "photo 1 has values from -1 to 1,.*white. Add 1 to them and"),
    ],
)
def test_images_that_are_no_photos(images, problem):
    with pytest.raises(ValueError, match=f"images: .*{problem}"):
        photos_from(images)


def test_photos_of_any_layout_and_precision():
    plain = torch.rand(2, 6, 4, 3)
    for given in (plain.half(), plain.double(), plain.bfloat16(), plain.permute(3, 1, 2, 0).permute(3, 1, 2, 0)):
        for found, photo in zip(photos_from(given), given, strict=True):
            assert torch.equal(found, photo.float()) and found.dtype == torch.float32
    for below, above in ((-0.1, 3.0), (-1.0, 2.0), (-20.0, 20.0), (0.1, 40.0), (0.0, 9000.0)):  # contrast, highlights
        beyond = torch.tensor([below, 0.5, 0.6, above]).reshape(1, 2, 2, 1)
        assert torch.equal(photos_from(beyond)[0], beyond[0].clamp(0, 1).expand(2, 2, 3))
    assert torch.equal(photos_from(torch.cat([plain, torch.full((2, 6, 4, 1), 2.0)], dim=-1))[0], plain[0])


def test_grey_and_transparent_photos():
    grey, clear = torch.rand(1, 8, 8, 1), torch.rand(1, 8, 8, 4)
    clear[..., :4, :, 3] = 0
    assert torch.equal(photos_from(grey)[0], grey[0].expand(8, 8, 3))
    assert (photos_from(clear)[0][:4] == 1).all()


@pytest.mark.parametrize(
    ("masks", "problem"),
    [
        (torch.full((1, 8, 8), NAN), "holds NaN"),
        (torch.zeros(1, 8, 8), "mask of photo 1 is empty"),
        (torch.ones(3, 8, 8), "got 3 masks for 2 photos"),
        (torch.ones(0, 8, 8), "expected a mask"),
    ],
)
def test_photo_masks(masks, problem):
    with pytest.raises(ValueError, match=f"masks: .*{problem}"):
        masks_from(masks, [torch.rand(16, 12, 3), torch.rand(20, 20, 3)])


def test_photo_masks_of_any_size_are_resized():
    masks = masks_from(torch.ones(1, 5, 7), [torch.rand(16, 12, 3), torch.rand(20, 20, 3)])
    assert [tuple(mask.shape) for mask in masks] == [(16, 12), (20, 20)]


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (torch.full((1, 8, 8), NAN), "holds NaN"),
        (torch.ones(2, 8, 8), "a batch of 2 masks"),
        (torch.full((8, 8), 255, dtype=torch.uint8), "the mask has values up to 255, .* white. Divide them by"),
        (torch.zeros(0, 0), "expected a mask"),
        (torch.ones(1, 60_000), "it has 60000 x 1 px, more than 16384 to a side"),
    ],
)
def test_region_masks(mask, problem, subject):
    with pytest.raises(ValueError, match=f"mask: .*{problem}"):
        MMDiffSubjectRegion.execute(subject, 1.0, "", 0.0, 1.0, mask=mask)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_region_masks_of_any_precision(dtype, subject):
    region = MMDiffSubjectRegion.execute(subject, 1.0, "", 0.0, 1.0, mask=left_half(8, 8).to(dtype)).args[0].region
    assert torch.equal(region, left_half(8, 8))


def test_a_mask_of_sums_and_differences_is_cut_off(subject):
    mask = torch.tensor([[-15.0, -1.0, 0.5, 2.0]])
    assert MMDiffSubjectRegion.execute(subject, 1.0, "", 0.0, 1.0, mask=mask).args[0].region.tolist() == [
        [0, 0, 0.5, 1]
    ]


def test_a_region_keeps_its_name_in_one_form(subject):
    assert MMDiffSubjectRegion.execute(subject, 1.0, "jose\u0301", 0.0, 1.0).args[0].name == "jos\u00e9"


def test_a_name_that_cannot_stand_in_a_trigger(subject):
    with pytest.raises(ValueError, match="name: 'a|b' cannot stand in a trigger"):
        MMDiffSubjectRegion.execute(subject, 1.0, "a|b", 0.0, 1.0)


def test_a_photo_of_one_pixel_is_encoded(checkpoint, tiny):
    face = Face(torch.nn.functional.normalize(torch.rand(512), dim=0), torch.rand(224, 224, 3))
    subject = encode_subject(checkpoint, tiny.clip_vision, [torch.rand(1, 1, 3)], [face])
    assert torch.isfinite(subject.cls).all() and subject.tokens.shape == (1, 4, 512)


def pad_to_square(photo: torch.Tensor, fill: float) -> torch.Tensor:
    """(H, W, 3) -> (S, S, 3), as the released code pads."""
    height, width = photo.shape[:2]
    side = abs(height - width) // 2
    padding = (0, 0, side, side, 0, 0) if height > width else (0, 0, 0, 0, side, side)
    return torch.nn.functional.pad(photo, padding, value=fill)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_a_photo_is_resized_without_its_square_to_the_bit(fill):
    for height, width in ((300, 501), (501, 300), (64, 64), (224, 224), (7, 700), (90, 700), (700, 90), (641, 480)):
        photo = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(height))
        assert torch.equal(resize_square(photo, 224, fill), resize(pad_to_square(photo, fill), 224)), (height, width)
    narrow = torch.rand(700, 7, 3, generator=torch.Generator().manual_seed(1))
    off = (resize_square(narrow, 224, fill) - resize(pad_to_square(narrow, fill), 224)).abs()
    assert off.max() < 1.01 / 255 and (off > 0).float().mean() < 1e-3


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1)])
def test_a_photo_of_one_row_is_resized_in_little_memory(size):
    """Its square would take 19 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = resize_square(torch.zeros(*size, 3), 224, 1.0)
    assert found.shape == (224, 224, 3) and found.min() > 0.9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024


def test_failures_leave_the_plain_model_bit_exact(tiny, checkpoint, subject):
    text = encode(tiny, checkpoint, [subject])
    before = run(guider_for(tiny.model, text))
    for changes in ({"positive": "a man"}, {"start_percent": 1.0, "end_percent": 0.5}, {"routing": "masks"}):
        with pytest.raises(ValueError):
            apply(tiny, checkpoint, {"subject_1": subject}, **changes)
    region = replace(subject, region=left_half())
    personalised = apply(tiny, checkpoint, {"subject_1": region}, routing="masks").result[0]
    with pytest.raises(ValueError, match="model: this model already carries MM-Diff subjects"):
        apply(tiny, checkpoint, {"subject_1": subject}, model=personalised)
    assert not torch.equal(run(guider_for(personalised, text)), before)
    assert torch.equal(run(guider_for(tiny.model, text)), before)


def test_a_trigger_in_the_negative_prompt(tiny, checkpoint, subject):
    said = "negative: a trigger <|subj|> stands in the negative prompt"
    with pytest.raises(ValueError, match=r"^negative: a trigger .* stands in the negative prompt"):
        apply(tiny, checkpoint, {"subject_1": subject}, negative="blurry, a boy<|subj|>")
    assert MMDiffApply.validate_inputs(negative="blurry, a boy<|subj|>").startswith(said)
    plain = apply(tiny, checkpoint, {"subject_1": subject}, negative="blurry, a boy<|subj|>", enabled=False)
    assert plain.args[0] is tiny.model


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ({"positive": "a man<|sub|>"}, "positive: a trigger is mistyped"),
        ({"negative": "blurry<|sub|>"}, "negative: a trigger <|sub|> stands in the negative prompt"),
        (
            {"positive": "(" * 3000 + "a man<|subj|>" + ")" * 3000},
            "positive: ComfyUI's tokeniser cannot read the prompt",
        ),
        ({"negative": "(x:nan)"}, "negative: a weight in the prompt is not a finite number"),
        ({"negative": "(x:1e39)"}, "negative: the encoded prompt holds numbers that are not finite"),
        ({"positive": "a" * 20_001 + "<|subj|>"}, "positive: the prompt has 20009 letters"),
    ],
)
def test_what_no_text_encoder_reads_is_refused_switched_off_too(prompts, sentence, tiny, checkpoint, subject):
    given = {"positive": "a man<|subj|>", "negative": ""} | prompts
    for enabled in (True, False):
        with pytest.raises(ValueError) as error:
            apply(
                tiny, checkpoint, {"subject_1": subject}, given["positive"], negative=given["negative"], enabled=enabled
            )
        assert str(error.value).startswith(sentence)
    if "mistyped" in sentence or "stands in" in sentence:
        assert MMDiffApply.validate_inputs(**given, enabled=False).startswith(sentence)
