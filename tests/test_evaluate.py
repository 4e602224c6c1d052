"""MMDiffEvaluate: scores against transformers' own, matching by hand, real InsightFace, the files and the picture."""

import itertools
import json
import logging
import shutil
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from mm_diff_pack.nodes.evaluate import NONE, MMDiffEvaluate, model_names
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from transformers import CLIPModel, CLIPProcessor, Dinov2Config, Dinov2Model, ViTImageProcessor, ViTModel

from evaluation_models import ASTRONAUT, CAT, MIRRORED, NO_FACE, TOWER, TWO_PEOPLE, photo, write_clip, write_dino
from mmdiff_model.evaluation.encoders import ConnectedVision, load_clip, load_dino
from mmdiff_model.evaluation.figures import Case, Models, match_scores, measure
from mmdiff_model.evaluation.matching import FaceMatch, FaceMatcher, greedy_match, reference_faces
from mmdiff_model.evaluation.picture import CELL, GAP, MARGIN, SHOWN, WIDTH, draw_report
from mmdiff_model.evaluation.report import MATCHED_FACES, WHOLE_PICTURES, Report, Score
from mmdiff_model.evaluation.similarity import evaluate, plain_prompt
from mmdiff_model.faces import detect, find_faces, load_face_analysis, to_bgr
from tiny_pack.faces import write_face_pack
from tiny_pack.models import make_clip_vision

PROMPT = "an astronaut<|subj|> and (a cat<|subj|>:1.3) in space"
WORDS = "an astronaut and a cat in space"
NAN = float("nan")


VISION = make_clip_vision(1)
PICTURES = torch.stack([ASTRONAUT[:300, :450], CAT[:300, :450], photo(data.coffee())[:300, :450]])


class Touch:
    """A pickle of it writes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def models(models_folder) -> Path:
    """models/mmdiff_evaluation with a tiny CLIP and two tiny DINOs."""
    folder = models_folder / "mmdiff_evaluation"
    write_clip(folder / "openai" / "clip")
    write_dino(folder / "dino")
    write_dino(folder / "dinov2", Dinov2Model, Dinov2Config)
    folder_paths.add_model_folder_path("mmdiff_evaluation", str(folder), is_default=True)
    return folder


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("insightface")
    write_face_pack(folder)
    return load_face_analysis(folder, "buffalo_l")


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


def run(**changes):
    inputs = {
        "images": PICTURES,
        "prompt": PROMPT,
        "references": {"reference_1": ASTRONAUT[None]},
        "clip_model": "openai/clip",
        "dino_model": "dino",
        "filename_prefix": "mmdiff_evaluation",
    }
    return MMDiffEvaluate.execute(**{**inputs, **changes})


def pil(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().numpy())


def values(report: Report, metric: str, subject: int | None = None) -> list[float]:
    [score] = [score for score in report.scores if (score.metric, score.subject) == (metric, subject)]
    return list(score.values)


# scores


def test_clip_scores_are_transformers_own(models):
    folder = models / "openai" / "clip"
    photos = [ASTRONAUT, CAT]
    report = evaluate(list(PICTURES), PROMPT, [photos], clip=load_clip(folder, "clip_model"))
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=[WORDS], images=[pil(picture) for picture in [*PICTURES, *photos]], return_tensors="pt")
    output = model(**inputs)
    expected = (output.logits_per_image / model.logit_scale.exp())[: len(PICTURES), 0]
    assert values(report, "CLIP-T") == pytest.approx(expected.tolist(), abs=1e-5)
    pictures, references = output.image_embeds[: len(PICTURES)], output.image_embeds[len(PICTURES) :]
    cosines = [[torch.cosine_similarity(a, b, dim=0).item() for b in references] for a in pictures]
    assert values(report, "CLIP-I", 1) == pytest.approx([sum(row) / len(row) for row in cosines], abs=1e-5)
    assert np.ptp(expected.numpy()) > 0.01 and np.ptp(cosines) > 0.01, (
        "the tiny model no longer tells these pictures apart"
    )


def test_a_clip_vision_socket_gives_clip_i(tiny, output):
    run(clip_model=NONE, dino_model=NONE, clip_vision=tiny.clip_vision)
    [file] = output.iterdir()
    [score] = json.loads(file.read_text())["scores"]
    photo, *pictures = (tiny.clip_vision.encode_image(one[None])["image_embeds"][0] for one in (ASTRONAUT, *PICTURES))
    cosines = [torch.cosine_similarity(picture, photo, dim=0).item() for picture in pictures]
    assert (score["metric"], score["subject"]) == ("CLIP-I", 1)
    assert score["values"] == pytest.approx(cosines, abs=1e-5)
    assert np.ptp(cosines) > 0.001, "the tiny model no longer tells these pictures apart"


@pytest.mark.parametrize(("name", "kind"), [("dino", ViTModel), ("dinov2", Dinov2Model)])
def test_dino_scores_are_transformers_own(models, name, kind):
    report = evaluate(list(PICTURES), "", [[CAT]], dino=load_dino(models / name, "dino_model"))
    model, processor = kind.from_pretrained(models / name), ViTImageProcessor.from_pretrained(models / name)
    pixels = processor([pil(picture) for picture in [*PICTURES, CAT]], return_tensors="pt")
    *pictures, reference = model(**pixels).last_hidden_state[:, 0]
    expected = [torch.cosine_similarity(picture, reference, dim=0).item() for picture in pictures]
    assert values(report, "DINO", 1) == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.01, "the tiny model no longer tells these pictures apart"


def test_a_picture_equal_to_its_reference_scores_one(models, analysis):
    report = evaluate(
        [ASTRONAUT],
        WORDS,
        [[ASTRONAUT]],
        load_clip(models / "openai" / "clip", "clip_model"),
        load_dino(models / "dino", "dino_model"),
        FaceMatcher(analysis, [reference_faces(analysis, [ASTRONAUT])]),
    )
    for metric in ("CLIP-I", "DINO", "face"):
        assert values(report, metric, 1) == pytest.approx([1.0], abs=1e-5)


def test_many_pictures_are_encoded_as_each_alone(models):
    dino = load_dino(models / "dino", "dino_model")
    pictures = list(torch.rand(19, 40, 30, 3, generator=torch.Generator().manual_seed(3)))
    together = dino.embed(pictures)
    assert together.shape == (19, TOWER["hidden_size"])
    assert torch.allclose(together[17], dino.embed(pictures[17:18])[0], atol=1e-5)


def test_models_are_known_to_comfyuis_memory_management(models):
    import comfy.model_management

    dino = load_dino(models / "dino", "dino_model")
    dino.embed([CAT])
    loaded = [module for held in comfy.model_management.current_loaded_models for module in held.model.model.children()]
    assert dino.loaded.model in loaded


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        (PROMPT, WORDS),
        ("a man<|subj:anna|>,  ((dancing))\nat night", "a man, dancing at night"),
        (r"a cat \(Felis\) [old]", "a cat (Felis) [old]"),
        ("<|subj|> ", ""),
    ],
)
def test_prompt_is_stripped_to_its_words(prompt, plain):
    assert plain_prompt(prompt) == plain


def test_long_prompt_is_cut_with_a_warning(models, caplog):
    clip = load_clip(models / "openai" / "clip", "clip_model")
    start = "a cat in a hat on a mat " * 20
    with caplog.at_level(logging.WARNING):
        cut = clip.embed_text(start + "with a dog")
    assert "first 77 of its" in caplog.text
    assert torch.equal(cut, clip.embed_text(start + "with a cow"))


# faces


@pytest.mark.parametrize(
    ("similarities", "matches"),
    [
        ([[0.9, 0.8], [0.7, 0.1]], [0, 1]),
        ([[0.2, 0.9], [0.3, 0.8]], [1, 0]),
        ([[0.5, 0.6]], [None, 0]),
        ([[0.1], [0.4], [0.3]], [1]),
        ([[-0.2, -0.1], [-0.4, -0.3]], [1, 0]),
    ],
    ids=["greedy, not best sum", "crossed", "one face for two", "three faces for one", "all below zero"],
)
def test_greedy_matching_by_hand(similarities, matches):
    assert greedy_match(np.array(similarities)) == matches


def test_minimum_is_the_weakest_matched_similarity():
    assert FaceMatch((0.6, 0.25, 0.9), (None, None, None)).minimum == 0.25
    scores = match_scores(FaceMatch((0.6, 0.2), (None, None)))
    assert scores == {("face", 1): 0.6, ("face", 2): 0.2, ("face minimum", None): 0.2}
    assert match_scores(FaceMatch((0.6,), (None,))) == {("face", 1): 0.6}


def matched(analysis, references, picture) -> FaceMatch:
    """What the figures of one picture say of its faces."""
    [figures] = measure(Models(), [Case(picture, "", faces=FaceMatcher(analysis, references))])
    similarities = tuple(figures.scores["face", number + 1] for number in range(len(references)))
    match = FaceMatch(similarities, figures.boxes)
    assert figures.scores == match_scores(match)
    return match


def test_two_people_in_one_picture_are_each_matched(analysis):
    people = [ASTRONAUT, MIRRORED]
    found = find_faces(analysis, to_bgr(TWO_PEOPLE))
    assert len(found) == 2
    match = matched(analysis, [reference_faces(analysis, [person]) for person in people], TWO_PEOPLE)
    references = [face.embedding.numpy() for face in detect(analysis, people)]
    cosines = np.array([[face.normed_embedding @ reference for reference in references] for face in found])
    best = max(itertools.permutations(range(2)), key=lambda order: cosines[order, range(2)].max())
    assert match.similarities == pytest.approx(np.maximum(cosines[best, range(2)], 0), abs=1e-6)
    (left, *_), (right, *_) = match.boxes
    assert left < 300 and right > 500


def test_several_photos_of_a_subject_are_averaged(analysis):
    face = find_faces(analysis, to_bgr(ASTRONAUT))[0].normed_embedding
    references = reference_faces(analysis, [ASTRONAUT, MIRRORED])
    [similarity] = matched(analysis, [references], ASTRONAUT).similarities
    assert similarity == pytest.approx((1 + face @ references[1]) / 2, abs=1e-5)
    assert similarity < 0.99


def test_no_face_and_unlike_faces_score_zero(analysis):
    reference = reference_faces(analysis, [ASTRONAUT])
    none = matched(analysis, [reference, reference], NO_FACE)
    assert none == FaceMatch((0.0, 0.0), (None, None)) and none.minimum == 0
    [opposite] = matched(analysis, [-reference], ASTRONAUT).similarities
    assert opposite == 0
    one_of_two = matched(analysis, [reference, reference], ASTRONAUT)
    assert sorted(one_of_two.similarities) == pytest.approx([0, 1], abs=1e-5) and one_of_two.minimum == 0


# report


@pytest.mark.parametrize("metric", ["CLIP-I", "DINO", "DINOv2"])
def test_whole_pictures_are_said_to_be_compared(metric):
    report = Report("", (1, 1), {}, tuple(Score(metric, (0.5,), subject) for subject in (1, 2)))
    assert report.notes == [WHOLE_PICTURES] and metric in WHOLE_PICTURES
    assert Report("", (1,), {}, (Score(metric, (0.5,), 1),)).notes == []


def test_interval_by_hand():
    assert Score("DINO", (0.5,)).interval is None
    assert Score("DINO", (0.5, 0.5, 0.5)).interval == (0.5, 0.5)
    # resampled means of two values are 0, 1/2 and 1 with 1/4, 1/2 and 1/4: both tails lie in the outer ones
    assert Score("DINO", (0.0, 1.0)).interval == (0.0, 1.0)


def test_interval_of_many_values_is_the_normal_one():
    sample = np.random.default_rng(4).normal(0.6, 0.1, 400)
    low, high = Score("DINO", tuple(sample)).interval
    half = 1.96 * sample.std() / 20
    assert (low, high) == pytest.approx((sample.mean() - half, sample.mean() + half), abs=half * 0.1)


def two_subject_report(pictures: int = 2) -> Report:
    faces = match_scores(FaceMatch((0.5, 0.25), (None, None)))
    scores = (
        Score("CLIP-T", (0.3,) * pictures),
        *(Score(metric, (value,) * pictures, subject) for (metric, subject), value in faces.items()),
    )
    boxes = (((9.0, 9.0, 60.0, 60.0), None),) * pictures
    return Report("a man and a cat", (1, 3), {"clip": "vit-l", "face": "w600k_r50.onnx"}, scores, boxes)


def test_table_by_hand():
    assert two_subject_report().table() == (
        "prompt: a man and a cat  \n"
        "clip: vit-l  \n"
        "face: w600k_r50.onnx\n"
        "\n"
        "| score        |  mean |   95% interval |\n"
        "| ------------ | ----: | -------------: |\n"
        "| CLIP-T       | 0.300 | 0.300 to 0.300 |\n"
        "| face 1       | 0.500 | 0.500 to 0.500 |\n"
        "| face 2       | 0.250 | 0.250 to 0.250 |\n"
        "| face minimum | 0.250 | 0.250 to 0.250 |\n"
        "\n"
        "| picture | CLIP-T | face 1 | face 2 | face minimum |\n"
        "| ------- | -----: | -----: | -----: | -----------: |\n"
        "| 1       |  0.300 |  0.500 |  0.250 |        0.250 |\n"
        "| 2       |  0.300 |  0.500 |  0.250 |        0.250 |\n"
        "\n"
        f"{MATCHED_FACES}\n"
    )


def test_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OSError):
        two_subject_report().save(tmp_path / "report.json")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_sheet_shows_the_pictures_and_the_matched_faces():
    pictures = [torch.full((300, 300, 3), grey) for grey in (0.2, 0.8)]
    sheet = draw_report(two_subject_report(), pictures, [[ASTRONAUT], [CAT, CAT, CAT]])
    assert sheet.shape[1:] == (WIDTH, 3) and sheet.min() >= 0 and sheet.max() <= 1
    left, right = MARGIN + CELL // 2, MARGIN + CELL + GAP + CELL // 2
    dark, light = ((sheet[:, column] - grey).abs().amax(dim=1) < 0.01 for column, grey in ((left, 0.2), (right, 0.8)))
    assert dark.sum() == light.sum() == CELL
    top = int(dark.nonzero()[0])
    frame = (sheet[top + 9, MARGIN + 35] * 255).round().int().tolist()
    assert frame == [0xE0, 0x40, 0x2F], "the first subject's face has a frame in its colour"


def test_sheet_ends_after_its_limit():
    def height(count: int) -> int:
        report = Report("", (), {}, (Score("CLIP-T", (0.3,) * count),))
        return len(draw_report(report, [torch.zeros(8, 8, 3)] * count, []))

    assert height(SHOWN) < height(SHOWN + 1) == height(SHOWN + 9)


# node


def test_node_gives_table_sheet_and_file(models, analysis, output):
    references = {
        "reference_1": ASTRONAUT[None],
        "reference_2": torch.stack([MIRRORED, ASTRONAUT]),
        "reference_3": None,
    }
    result = run(images=TWO_PEOPLE[None], references=references, face_analysis=analysis, filename_prefix="runs/pair")
    table, sheet = result.args
    assert sheet.shape[0] == 1 and sheet.shape[2:] == (WIDTH, 3)
    assert len(result.ui.as_dict()["images"]) == 1
    saved = json.loads((output / "runs" / "pair_00001_.json").read_text(encoding="utf-8"))
    assert (saved["format"], saved["prompt"], saved["pictures"]) == ("mmdiff_evaluation", WORDS, 1)
    assert saved["subjects"] == [{"photos": 1}, {"photos": 2}]
    assert saved["models"] == {"clip": "clip", "dino": "dino", "face": "w600k_r50.onnx"}
    assert saved["notes"] == [WHOLE_PICTURES, MATCHED_FACES]
    names = [(score["metric"], score["subject"]) for score in saved["scores"]]
    pairs = [(metric, subject) for metric in ("CLIP-I", "DINO", "face") for subject in (1, 2)]
    assert names == [("CLIP-T", None), *pairs, ("face minimum", None)]
    for score in saved["scores"]:
        assert score["mean"] == pytest.approx(score["values"][0]) and score["interval"] is None
        assert f"{score['mean']:.3f}" in table
    faces = {score["subject"]: score["mean"] for score in saved["scores"] if score["metric"].startswith("face")}
    assert faces[None] == min(faces[1], faces[2]) > 0


def test_a_second_run_writes_a_second_file(models, output):
    for _ in range(2):
        run()
    first, second = sorted(output.iterdir())
    assert [first.name, second.name] == ["mmdiff_evaluation_00001_.json", "mmdiff_evaluation_00002_.json"]
    assert first.read_text() == second.read_text()


@pytest.mark.parametrize(
    ("changes", "metrics"),
    [
        ({"references": {}, "dino_model": NONE}, ["CLIP-T"]),
        ({"clip_model": NONE, "prompt": ""}, ["DINO"]),
        ({"dino_model": NONE}, ["CLIP-T", "CLIP-I"]),
        ({"dino_model": NONE, "clip_model": NONE, "clip_vision": VISION, "prompt": ""}, ["CLIP-I"]),
    ],
    ids=["no reference", "no CLIP", "no DINO", "a connected CLIP alone"],
)
def test_what_is_left_out_is_not_scored(models, output, changes, metrics):
    run(**changes)
    [file] = output.iterdir()
    assert [score["metric"] for score in json.loads(file.read_text())["scores"]] == metrics


def test_a_connected_clip_compares_as_its_own_model_does():
    report = evaluate([CAT, MIRRORED], "", [[CAT, ASTRONAUT]], ConnectedVision(VISION))
    vectors = [VISION.encode_image(picture[None])["image_embeds"][0] for picture in (CAT, MIRRORED, CAT, ASTRONAUT)]
    one, other, *photos = (vector / vector.norm() for vector in vectors)
    expected = [float(torch.stack([picture @ photo for photo in photos]).mean()) for picture in (one, other)]
    assert values(report, "CLIP-I", 1) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 0.001, "the tiny model no longer tells these pictures apart"
    assert report.models == {"clip": "clip_vision"}


def test_models_are_listed_by_their_folders(models):
    (models / "empty").mkdir(exist_ok=True)
    assert model_names() == [NONE, "dino", "dinov2", "openai/clip"]


def test_grey_and_transparent_references_are_taken(models, output):
    grey, clear = CAT[None, ..., :1], torch.cat([CAT, torch.zeros_like(CAT[..., :1])], dim=-1)[None]
    run(references={"reference_1": grey, "reference_2": clear}, images=torch.ones_like(CAT)[None])
    [file] = output.iterdir()
    scores = {(score["metric"], score["subject"]): score["mean"] for score in json.loads(file.read_text())["scores"]}
    assert scores["DINO", 2] == pytest.approx(1, abs=1e-5) and scores["DINO", 1] < 0.999


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_model": NONE, "dino_model": NONE}, "clip_model: there is nothing to measure"),
        ({"prompt": " <|subj|> "}, "prompt: it is empty, and CLIP-T .* Write the pictures' prompt"),
        ({"references": {}}, "references: none is connected, and dino_model .* Connect photos"),
        ({"references": {"reference_1": None}}, "references: none is connected"),
        ({"images": PICTURES * NAN}, "images: photo 1 holds NaN"),
        ({"references": {"reference_2": CAT[None] * NAN}}, r"^references\.reference_2: photo 1 holds NaN"),
        ({"clip_model": "dino"}, "clip_model: 'dino' is a model of type 'vit', clip is needed"),
        ({"dino_model": "openai/clip"}, "dino_model: 'clip' is a model of type 'clip', vit or dinov2"),
        ({"dino_model": "gone"}, "dino_model: 'gone' is no longer in .*refresh"),
        ({"clip_vision": VISION}, "clip_vision: clip_model measures CLIP-I already. Disconnect it"),
        (
            {"clip_model": NONE, "dino_model": NONE, "clip_vision": VISION, "references": {}},
            "references: none is connected, and clip_vision compares",
        ),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(models, output, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(**changes)
    assert list(output.iterdir()) == []


def test_reference_without_a_face_is_named(models, analysis, output):
    references = {"reference_1": ASTRONAUT[None], "reference_2": torch.stack([ASTRONAUT[:400], NO_FACE[:400, :512]])}
    with pytest.raises(ValueError, match=r"^references\.reference_2: no face found in photo 2 of 2"):
        run(references=references, face_analysis=analysis)
    with pytest.raises(ValueError, match="references: none is connected, and face_analysis"):
        run(references={}, dino_model=NONE, face_analysis=analysis)
    with pytest.raises(ValueError, match="^face_analysis: an InsightFace object is needed"):
        run(face_analysis={"frames": []})
    assert list(output.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "lacks config.json"),
        ("preprocessor_config.json", "lacks preprocessor_config.json"),
        ("model.safetensors", "lacks its weights"),
        ("vocab.json", "lacks its tokenizer"),
    ],
)
def test_folder_without_a_file_is_named(models, tmp_path, file, message):
    folder = Path(shutil.copytree(models / "openai" / "clip", tmp_path / "clip"))
    (folder / file).unlink()
    with pytest.raises(ValueError, match=f"^clip_model: .*{message}.*openai/clip-vit-large-patch14"):
        load_clip(folder, "clip_model")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "config.json in .* is damaged"),
        ("config.json", b"[]", "config.json in .* is damaged"),
        ("preprocessor_config.json", b"{", "cannot be loaded"),
        ("model.safetensors", b"\x00" * 100, "cannot be loaded"),
    ],
)
def test_damaged_dino_folder_is_named(models, tmp_path, file, content, message):
    folder = Path(shutil.copytree(models / "dino", tmp_path / "dino"))
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"^dino_model: .*{message}"):
        load_dino(folder, "dino_model")


@pytest.mark.parametrize("file", ["vocab.json", "tokenizer_config.json"])
def test_damaged_tokenizer_is_named(models, tmp_path, file):
    folder = Path(shutil.copytree(models / "openai" / "clip", tmp_path / "clip"))
    (folder / file).write_text("{")
    with pytest.raises(ValueError, match="^clip_model: 'clip' cannot be loaded: .*openai/clip-vit-large-patch14"):
        load_clip(folder, "clip_model")


def test_weights_that_lack_a_tensor_are_refused(models, tmp_path):
    folder = Path(shutil.copytree(models / "dino", tmp_path / "dino"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="^dino_model: 'dino' cannot be loaded: its weights lack layernorm.weight"):
        load_dino(folder, "dino_model")


def test_weights_in_a_pickle_are_read_and_never_executed(models, tmp_path):
    folder = Path(shutil.copytree(models / "dino", tmp_path / "dino"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    expected = load_dino(models / "dino", "dino_model").embed([CAT])
    assert torch.equal(load_dino(folder, "dino_model").embed([CAT]), expected)
    torch.save({**tensors, "layernorm.weight": Touch(tmp_path / "executed")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="^dino_model: 'dino' cannot be loaded"):
        load_dino(folder, "dino_model")
    assert not (tmp_path / "executed").exists()
