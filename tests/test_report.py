"""MM-Diff Report: what it tells of real samplings with tiny models, and that nothing in a graph makes it fail."""

import json
import sys
from dataclasses import replace
from types import FunctionType

import folder_paths
import pytest
import torch
from mm_diff_pack.nodes.report import MMDiffReport

import neighbour_packs as packs
import nodes as core
from evaluation_models import ASTRONAUT, MIRRORED, NO_FACE, TWO_PEOPLE
from helpers import TWO_PROMPT, encode, left_half, noise_for, random_subject, sample
from mmdiff_model.faces import detect, load_face_analysis
from mmdiff_model.mixing import join_tokens
from mmdiff_model.report.likeness import face_of_crop
from mmdiff_model.sampling import apply_subjects
from mmdiff_model.sampling.patches import OURS, whose
from mmdiff_model.sampling.routing import AUTO, MASKS
from mmdiff_model.schedule import Schedule
from mmdiff_model.subject import encode_subject
from mmdiff_model.subject_file import load_subject, save_subject
from mmdiff_model.text import encode_text
from mmdiff_model.vision import resize
from test_ranges import STEPS, advanced
from tiny_pack.faces import write_face_pack

SIGMAS = (14.0, 8.0, 4.1, 2.0, 1.2, 0.7, 0.3, 0.0)
GREY = torch.full((2, 128, 128, 3), 0.5)


@pytest.fixture(autouse=True)
def folder_for_previews(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("insightface")
    write_face_pack(folder)
    return load_face_analysis(folder, "buffalo_l")


@pytest.fixture(scope="module")
def eileen(tiny, checkpoint, analysis):
    """Encoded from two photos with a face."""
    photos = [ASTRONAUT, MIRRORED]
    return encode_subject(checkpoint, tiny.clip_vision, photos, detect(analysis, photos))


@pytest.fixture(scope="module")
def anna(checkpoint):
    return random_subject(
        checkpoint, 1, photos=3, name="anna", region=left_half(), scores=(0.9, 0.8, 0.7), outliers=(2,)
    )


@pytest.fixture(scope="module")
def bert(checkpoint):
    return random_subject(checkpoint, 2, end_percent=0.6)


def report(*args, **inputs) -> tuple[str, dict, torch.Tensor]:
    """Text, JSON and sheet of the node; all three are always there."""
    text, data, sheet = MMDiffReport.execute(*args, **inputs).args
    assert sheet.ndim == 4 and sheet.shape[2] == 1340 and 0 <= sheet.min() < sheet.max() <= 1
    return text, json.loads(data), sheet


def test_what_a_sampling_was(tiny, checkpoint, anna, bert):
    schedule = Schedule(0.2)
    prompt = "(a man<|subj|>:1.2) and two firefighters<|subj|> dancing"
    text = encode_text(tiny.clip, checkpoint, [anna, bert], prompt, "blurry", schedule)
    model = apply_subjects(tiny.model, checkpoint, [anna, bert], 0.7, schedule, MASKS)
    sample(model, text, noise=noise_for(batch=2), sigmas=SIGMAS)
    lines, data, _ = report(model, text.positive, GREY)
    assert data["model"]["fuse_scale"] == 0.7 and data["model"]["routing"] == MASKS
    assert data["sampling"]["pictures"] == 2 and data["sampling"]["latent"] == {"height": 16, "width": 16}
    first, second = data["subjects"]
    assert (first["name"], first["photos"], first["tokens"]) == ("anna", 3, 3 * checkpoint.sizes.num_tokens)
    assert (first["face_scores"], first["outliers"]) == ([0.9, 0.8, 0.7], [2])
    assert (first["steps"], second["steps"]) == ([3, 7], [3, 5])
    assert first["sigmas"] == pytest.approx([4.1, 0.3]) and second["sigmas"] == pytest.approx([4.1, 1.2])
    assert first["coverage"] == pytest.approx([0.5]) and second["coverage"] == pytest.approx([0.5])
    assert [word["word"] for word in first["words"] + second["words"]] == ["man", "firefighters"]
    tokens = [token for token, *_ in tiny.clip.tokenize("a man and two firefighters dancing")["l"][0]]
    for word in first["words"] + second["words"]:
        shown = tiny.clip.tokenizer.untokenize([(tokens[word["position"]], 1.0)])[0][1]
        assert word["token"] == shown.removesuffix("</w>") and word["word"].endswith(word["token"])
    assert data["prompts"] == [{"subjects": [1, 2], "missing": [], "triggers": True, "area": None}]
    assert "photo 2 looks unlike the others" in lines and "steps 3 to 5 of 7, sigma 4.1 to 1.2" in lines
    assert not data["notes"]


def patches_of(model, **inputs) -> dict[tuple[str, str], int]:
    return {(patch["place"], patch["owner"]): patch["count"] for patch in report(model, **inputs)[1]["patches"]}


def test_whose_the_patches_are(tiny, checkpoint, bert):
    """Those of nodes before and after Apply MM-Diff, of every kind, counted where they are."""

    def as_it_is(apply_model, call):
        return apply_model(call["input"], call["timestep"], **call["c"])

    model = apply_subjects(packs.add_context_patch(packs.add_image_prompt(tiny.model)), checkpoint, [bert])
    model = packs.add_block_replace(packs.add_output_patch(model))
    model.set_model_unet_function_wrapper(as_it_is)
    weight = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_q.weight"
    ours = sum(".attn" in name for name in model.patches)
    model.add_patches({weight: ("diff", (torch.zeros(1),))})
    before = {
        ("attn2 replace", "neighbour_packs.Attn2Replace"): 2,
        ("attn2 patch", "neighbour_packs.add_context_patch.<locals>.<lambda>"): 1,
        ("attn2 output patch", "neighbour_packs.add_output_patch.<locals>.<lambda>"): 1,
        ("around each call of the model", f"{__name__}.test_whose_the_patches_are.<locals>.as_it_is"): 1,
        ("weights (LoRA)", OURS): ours,
        ("weights (LoRA)", "another LoRA"): 1,
    }
    assert patches_of(model) == before
    sample(model, encode(tiny, checkpoint, [bert]), sigmas=SIGMAS[2:])
    assert patches_of(model, images=GREY[:1]) == before | {("attn2 replace", OURS): 17}


def test_a_module_put_in_place_of_an_attention(tiny):
    model = tiny.model.clone()
    place = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1"
    model.add_object_patch(place, torch.nn.Identity())
    assert patches_of(model) == {(f"module {place}", "torch.nn.modules.linear.Identity"): 1}


def test_a_pack_is_named_without_its_path():
    def patch():
        pass

    named = FunctionType(patch.__code__, {}, "attn_patch")
    named.__qualname__ = "attn_patch"
    for path in ("/home/me/custom_nodes/ComfyUI_IPAdapter_plus", r"C:\ComfyUI\custom_nodes\ComfyUI_IPAdapter_plus"):
        named.__module__ = f"{path}.CrossAttentionPatch"
        assert whose(named) == "ComfyUI_IPAdapter_plus.CrossAttentionPatch.attn_patch"
    assert whose(sys.modules["mmdiff_model.sampling.attention"].attention_maps) == OURS


def test_patches_that_come_with_a_conditioning(tiny, checkpoint, bert):
    text = encode(tiny, checkpoint, [bert])
    couple = packs.AttentionCouple([], torch.ones(1, 16, 16), packs.LAYOUT_KEYS[0])
    model = apply_subjects(tiny.model, checkpoint, [bert])
    sample(model, replace(text, positive=couple.on_conditioning(text.positive)), sigmas=SIGMAS[2:])
    owners = {patch["owner"]: patch["place"] for patch in report(model, images=GREY[:1])[1]["patches"]}
    assert owners["neighbour_packs.AttentionCouple.attn2_patch"] == "attn2 patch, with a conditioning"


def test_auto_tells_each_picture_or_why_not(tiny, checkpoint, anna, bert):
    whole = replace(anna, region=None)
    model = apply_subjects(tiny.model, checkpoint, [whole, bert], routing=AUTO)
    text = encode(tiny, checkpoint, [whole, bert])
    sample(model, text, noise=noise_for(batch=2), sigmas=SIGMAS)
    data = report(model, text.positive, GREY)[1]
    assert [len(subject["coverage"]) for subject in data["subjects"]] == [2, 2]
    assert all(0 < covered <= 1 for subject in data["subjects"] for covered in subject["coverage"])
    one = encode(tiny, checkpoint, [whole, bert], "a man<|subj:1|> alone")
    sample(model, one, sigmas=SIGMAS)
    lines, data, _ = report(model, one.positive, GREY)
    assert not data["subjects"][0]["coverage"] and "no class word: no trigger calls it" in lines
    said = "\n".join(data["notes"])
    assert "routing: 'auto' read no regions" in said and "no positive prompt calls subject 2" in said
    assert "images: there are 2, and the latest sampling with this MODEL made 1" in said


def test_a_subject_that_auto_never_read_is_not_nowhere(tiny, checkpoint, anna, bert):
    """Two prompts: the maps of one hold two subjects, the third is alone in the other."""
    subjects = [replace(anna, region=None), bert, random_subject(checkpoint, 3)]
    text = encode(tiny, checkpoint, subjects, TWO_PROMPT)
    other = encode(tiny, checkpoint, subjects, "a dog<|subj:3|>")
    model = apply_subjects(tiny.model, checkpoint, subjects, routing=AUTO)
    sample(model, replace(text, positive=text.positive + other.positive), sigmas=SIGMAS)
    lines, data, _ = report(model, images=GREY[:1])
    assert data["subjects"][2]["coverage"] == [None] and "coverage by routing not routed" in lines
    assert [prompt["subjects"] for prompt in data["prompts"]] == [[1, 2], [3]]
    assert [word["word"] for word in data["subjects"][2]["words"]] == ["dog"]


def test_several_conditionings(tiny, checkpoint, bert):
    text = encode(tiny, checkpoint, [bert])
    beach = tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize("a beach"))
    corner = core.ConditioningSetArea().append(beach, 64, 64, 0, 0, 1.0)[0]
    model = apply_subjects(tiny.model, checkpoint, [bert])
    sample(model, replace(text, positive=text.positive + corner), sigmas=SIGMAS)
    lines, data, _ = report(model, images=GREY[:1])
    assert [(prompt["triggers"], prompt["area"]) for prompt in data["prompts"]] == [(True, None), (False, [8, 8, 0, 0])]
    assert "has no trigger, and gets every subject in the image branch; in an area (8, 8, 0, 0)" in lines
    assert any("a prompt without triggers stands beside prompts with them" in note for note in data["notes"])


@pytest.mark.parametrize("percent", [False, True])
def test_before_sampling(tiny, checkpoint, anna, bert, percent):
    text = encode_text(tiny.clip, checkpoint, [anna, bert], "a man<|subj:anna|>", "", Schedule(0.2))
    positive = text.positive
    if percent:
        positive = core.NODE_CLASS_MAPPINGS["ConditioningSetAreaPercentage"]().append(positive, 0.5, 0.5, 0, 0, 1.0)[0]
    model = apply_subjects(tiny.model, checkpoint, [anna, bert], schedule=Schedule(0.2))
    lines, data, _ = report(model, positive)
    assert data["sampling"] is None and data["subjects"][0]["steps"] is None and len(data["prompts"]) == 1
    assert data["subjects"][0]["percents"] == [0.2, 1.0] and data["subjects"][1]["percents"] == [0.2, 0.6]
    assert "nothing was sampled with it yet" in lines and "no positive prompt calls subject 2" in lines
    assert {patch["owner"] for patch in data["patches"]} == {OURS}
    assert "none is connected, so that class words are not known" in report(model)[0]


def test_a_model_without_subjects(tiny, checkpoint, bert):
    """Apply MM-Diff is missing, or switched off."""
    text = encode(tiny, checkpoint, [bert])
    for positive in (text.positive, None, [], tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize("a beach"))):
        lines, data, _ = report(tiny.model, positive, GREY, object(), tiny.clip_vision)
        assert data["model"] is data["sampling"] is None and not data["subjects"] and not data["patches"]
        assert "this MODEL carries no subjects" in lines
    assert "calls 1 of its text node, which the MODEL does not carry" in report(tiny.model, text.positive)[0]


def test_without_images_it_says_what_it_may_be_of(tiny, checkpoint, bert):
    model = apply_subjects(tiny.model, checkpoint, [bert])
    sample(model, encode(tiny, checkpoint, [bert]), sigmas=SIGMAS)
    notes = report(model, clip_vision=tiny.clip_vision)[1]["notes"]
    assert [note.partition(".")[0] for note in notes] == [
        "images: none are connected, so that the report may tell of the sampling before",
        "images: none are connected, so that there is nothing to compare with the subjects",
    ]


@pytest.mark.parametrize("strength, percents, says", [(0.0, (0.0, 1.0), "strength 0"), (1.0, (0.5, 0.5), "in no part")])
def test_a_subject_that_never_acts(tiny, checkpoint, bert, strength, percents, says):
    idle = replace(bert, strength=strength, start_percent=percents[0], end_percent=percents[1])
    model = apply_subjects(tiny.model, checkpoint, [idle])
    sample(model, encode(tiny, checkpoint, [idle]), sigmas=SIGMAS)
    lines, data, _ = report(model, images=GREY[:1])
    assert data["subjects"][0]["steps"] is None and says in lines


def test_a_schedule_in_two_parts(tiny, checkpoint, bert):
    """KSamplerAdvanced, twice: the steps are those of the whole schedule."""
    schedule = Schedule(start_merge_step=2)
    model = apply_subjects(tiny.model, checkpoint, [replace(bert, end_percent=1.0)], schedule=schedule)
    text = encode_text(tiny.clip, checkpoint, [bert], "a man<|subj|>", "", schedule)
    advanced(model, text, 0, 4, "enable")
    assert report(model, images=GREY[:1])[1]["subjects"][0]["steps"] == [3, 4]
    advanced(model, text, 4, STEPS, "disable")
    lines, data, _ = report(model, images=GREY[:1])
    assert data["subjects"][0]["steps"] == [5, 6] and data["sampling"]["steps_before"] == 4
    assert "steps 5 to 6 of 6" in lines and "2 steps after 4 of another sampler" in lines


def test_how_like_pictures_are(tiny, checkpoint, analysis, eileen, anna, tmp_path):
    """A subject's own photo is as like as can be, another one less, whether it is fresh or from a file."""
    save_subject(eileen, tmp_path / "eileen.safetensors")
    pictures = torch.stack([ASTRONAUT, resize(TWO_PEOPLE[:, :400], 512), resize(NO_FACE, 512)])
    seen = []
    for subject in (eileen, load_subject(tmp_path / "eileen.safetensors")):
        model = apply_subjects(tiny.model, checkpoint, [subject])
        sample(model, encode(tiny, checkpoint, [subject]), noise=noise_for(batch=3), sigmas=SIGMAS[2:])
        _, data, _ = report(model, None, pictures, analysis, tiny.clip_vision)
        assert not data["notes"]
        seen.append(data["subjects"][0]["likeness"])
    own, pasted, none = seen[0]["face"]
    assert own > 0.98 and 0 < pasted < own and none == 0
    assert seen[0]["CLIP"][0] == pytest.approx(1, abs=1e-5) and max(seen[0]["CLIP"][1:]) < 0.95
    assert seen[1]["face"] == pytest.approx(seen[0]["face"], abs=0.01)


def test_a_thumbnails_face_is_the_photos(analysis, eileen):
    [face] = detect(analysis, [ASTRONAUT])
    assert face_of_crop(analysis, eileen.thumbnail) @ face.embedding.numpy() > 0.98
    assert face_of_crop(analysis, eileen.thumbnail.flip(0)) @ face.embedding.numpy() < 0.9


def test_nothing_that_is_connected_makes_it_fail(tiny, checkpoint, analysis, eileen, anna):
    """Every node's outputs where another's belong: the report says so, and tells the rest."""
    from tiny_pack.models import make_clip_vision

    wide = make_clip_vision(20)
    wide.config = {**wide.config, "hidden_size": 1280}
    model = apply_subjects(tiny.model, checkpoint, [eileen])
    sample(model, encode(tiny, checkpoint, [eileen]), sigmas=SIGMAS[2:])
    black = GREY.clone()
    black[0, 0, 0, 0] = torch.nan
    for inputs, says in (
        ({"face_analysis": {"model": 1}}, "face_analysis: faces were not compared"),
        ({"face_analysis": object()}, "face_analysis: faces were not compared"),
        ({"clip_vision": wide}, "clip_vision: pictures were not compared"),
        ({"images": black, "face_analysis": analysis}, "images: photo 1 holds NaN"),
        ({"images": torch.rand(1, 8, 8, 2)}, "images: photos have 2 channels"),
        ({"images": torch.rand(3, 600, 5, 3), "face_analysis": analysis}, "images: there are 3"),
        ({"images": torch.rand(1, 64, 64, 4), "face_analysis": analysis}, "steps 1 to 5 of 5"),
    ):
        assert says in report(model, **{"images": GREY[:1], **inputs})[0]
    other = apply_subjects(tiny.model, checkpoint, [eileen])
    for positive in ([[torch.rand(8), {}]], [[None, {}]], "a man"):
        assert "positive: it was not read" in report(other, positive)[0]
    faceless = apply_subjects(tiny.model, checkpoint, [eileen, anna])
    assert "subject 2 has no picture of its face" in report(faceless, None, GREY, analysis)[0]


def test_many_subjects_and_pictures_fit_the_sheet(tiny, checkpoint, eileen):
    subjects = [replace(eileen, name=f"{'a very long name ' * 11}{i}", region=left_half()) for i in range(6)]
    subjects[0] = join_tokens(subjects)
    text = encode(tiny, checkpoint, subjects, " and ".join(f"a man<|subj:{i + 1}|>" for i in range(6)))
    model = apply_subjects(tiny.model, checkpoint, subjects, routing=MASKS)
    sample(model, text, noise=noise_for(batch=12), sigmas=SIGMAS[2:])
    lines, data, sheet = report(model, text.positive, torch.rand(12, 200, 64, 3))
    assert data["subjects"][0]["photos"] == 12 and sheet.shape[1] < 20_000
    assert "12 pictures" in lines and data["model"]["routing"] == MASKS
