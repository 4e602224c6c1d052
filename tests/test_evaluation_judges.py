"""Boxes by word and second recognisers: real transformers and ONNX models with random weights, from folders."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from insightface.utils.face_align import norm_crop
from mm_diff_pack.nodes.evaluate import NONE, MMDiffEvaluate, model_names, recogniser_names
from transformers import (
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from evaluation_models import (
    ASTRONAUT,
    CAT,
    MIRRORED,
    NO_FACE,
    TOWER,
    TWO_PEOPLE,
    randomised,
    write_clip,
    write_dino,
    write_grounding,
)
from mmdiff_model.evaluation.boxes import load_boxes
from mmdiff_model.evaluation.encoders import load_dino, load_dinov2
from mmdiff_model.evaluation.matching import FaceMatcher, found_vectors, reference_faces, unseen_faces
from mmdiff_model.evaluation.recogniser import load_recogniser
from mmdiff_model.evaluation.similarity import evaluate
from mmdiff_model.faces import find_faces, load_face_analysis, to_bgr
from tiny_pack.faces import RECOGNITION_FILE, build_recogniser, write_face_pack


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("insightface")
    write_face_pack(folder)
    return load_face_analysis(folder, "buffalo_l")


@pytest.fixture(scope="module")
def grounding(tmp_path_factory) -> Path:
    return write_grounding(tmp_path_factory.mktemp("grounding"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return load_dino(write_dino(tmp_path_factory.mktemp("dino")), "dino_model")


# boxes by word


def test_boxes_are_transformers_own(grounding):
    """One word: its score is the largest of the text, as transformers' own post-processing takes it."""
    [found] = load_boxes(grounding, "box_model").find([CAT], [["cat"]])
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessor.from_pretrained(grounding), AutoTokenizer.from_pretrained(grounding)
    )
    inputs = processor(images=(CAT * 255).byte().numpy(), text="cat.", return_tensors="pt")
    output = GroundingDinoForObjectDetection.from_pretrained(grounding)(**inputs)
    [expected] = processor.post_process_grounded_object_detection(
        output, inputs.input_ids, threshold=0.25, target_sizes=[CAT.shape[:2]]
    )
    assert found["cat"], "the tiny model no longer finds anything"
    height, width = CAT.shape[:2]
    inside = expected["boxes"].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    for box in found["cat"]:
        assert (inside - torch.tensor(box)).abs().amax(dim=1).min() < 1e-2


def test_each_picture_has_the_boxes_it_has_alone(grounding):
    finder = load_boxes(grounding, "box_model")
    pictures = [CAT, CAT.flip(1), ASTRONAUT, ASTRONAUT]
    words = [["cat"], ["cat"], ["dog", "stuffed animal", "dog"], ["dog"]]
    together = finder.find(pictures, words)
    for picture, asked, found in zip(pictures, words, together, strict=True):
        [alone] = finder.find([picture], [asked])
        assert list(found) == list(alone) == list(dict.fromkeys(asked))
        for word in found:
            assert np.allclose(found[word], alone[word], atol=1e-2)
            assert len(found[word]) <= 3


def test_ip_and_swaps_come_from_the_crops_at_the_words(grounding, dino):
    finder = load_boxes(grounding, "box_model")
    report = evaluate([CAT, ASTRONAUT], "", [[CAT], [ASTRONAUT]], dino=dino, boxes=finder, words=["cat", "dog"])
    assert report.models == {"dino": dino.name, "boxes": finder.name}
    from mmdiff_model.evaluation.boxes import square_crop

    for i, picture in enumerate([CAT, ASTRONAUT]):
        [found] = finder.find([picture], [["cat", "dog"]])
        cosines = [
            [float(dino.embed([square_crop(picture, box)])[0] @ dino.embed([photo])[0]) for box in found[word]]
            for word, photo in (("cat", CAT), ("dog", ASTRONAUT))
        ]
        [ip] = [score for score in report.protocols if score.metric == "XVerse IP"]
        assert ip.values[i] == pytest.approx(np.mean([max(row, default=0) for row in cosines]), abs=1e-4)
        [swap] = report.swaps
        for row, own, number in zip(swap.rows[i], cosines, (0, 1), strict=True):
            assert row is None if not own else row[number] == pytest.approx(own[0], abs=1e-4)


def test_dino_reads_pictures_and_crops_in_one_pass(grounding, dino, monkeypatch):
    calls = []
    embed = type(dino).embed
    monkeypatch.setattr(
        type(dino), "embed", lambda self, pictures: calls.append(len(pictures)) or embed(self, pictures)
    )
    evaluate([CAT] * 2, "", [[CAT], [ASTRONAUT]], dino=dino, boxes=load_boxes(grounding, "b"), words=["cat", "dog"])
    references, pictures = calls[:2], calls[2:]
    assert references == [1, 1] and len(pictures) == 1 and pictures[0] > 2


@pytest.mark.parametrize(
    ("file", "message"),
    [("config.json", "lacks config.json"), ("tokenizer.json", "lacks its tokenizer"), ("model.safetensors", "weights")],
)
def test_box_folder_without_a_file_is_named(grounding, tmp_path, file, message):
    folder = Path(shutil.copytree(grounding, tmp_path / "grounding"))
    (folder / file).unlink()
    with pytest.raises(ValueError, match=f"^box_model: .*{message}.*grounding-dino-tiny"):
        load_boxes(folder, "box_model")


def test_folders_of_another_model_are_named(grounding, tmp_path):
    folder = write_dino(tmp_path / "dino")
    with pytest.raises(ValueError, match="^box_model: 'dino' is a model of type 'vit', grounding-dino is needed"):
        load_boxes(folder, "box_model")
    with pytest.raises(ValueError, match="^dinov2_model: 'dino' is a model of type 'vit', dinov2 or"):
        load_dinov2(folder, "dinov2_model")
    with pytest.raises(ValueError, match="^face_recogniser: 'clip' cannot be loaded: .*does not read pictures alone"):
        load_recogniser(write_clip(tmp_path / "clip"), "face_recogniser")
    with pytest.raises(ValueError, match="^face_recogniser: '.*' lacks config.json.*or one .onnx file"):
        load_recogniser(tmp_path, "face_recogniser")


# recognisers


def write_onnx(folder: Path, seed: int = 0, **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(build_recogniser(seed), folder / "judge.onnx")
    if settings:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_the_packs_own_recogniser_gives_the_packs_own_vectors(analysis, tmp_path):
    """buffalo_l's file in a folder of its own is the second judge: the same faces, the same numbers."""
    recogniser = load_recogniser(write_onnx(tmp_path / "same"), "face_recogniser")
    image = to_bgr(TWO_PEOPLE)
    found = find_faces(analysis, image)
    assert len(found) == 2
    assert np.allclose(recogniser.vectors(image, found), found_vectors(None, image, found), atol=2e-3)
    assert np.allclose(
        reference_faces(analysis, [ASTRONAUT, MIRRORED], recogniser=recogniser),
        reference_faces(analysis, [ASTRONAUT, MIRRORED]),
        atol=2e-3,
    )


def test_an_onnx_folder_says_how_its_colours_are(analysis, tmp_path):
    folder = write_onnx(
        tmp_path / "bgr", image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], do_flip_channel_order=True
    )
    image = to_bgr(ASTRONAUT)
    [face] = find_faces(analysis, image)
    crop = norm_crop(image, landmark=face.kps, image_size=112)[..., ::-1] / 255
    pixels = ((crop - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6])[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(folder / "judge.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(None, {"input.1": pixels})[0][0]
    [vector] = load_recogniser(folder, "face_recogniser").vectors(image, [face])
    assert vector @ expected / np.linalg.norm(expected) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("pooled", [True, False])
def test_a_transformers_recogniser_is_transformers_own(analysis, tmp_path, pooled):
    folder = tmp_path / "vit"
    model = randomised(ViTModel(ViTConfig(**TOWER, image_size=32, patch_size=8), add_pooling_layer=pooled), 5)
    model.save_pretrained(folder)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    image = to_bgr(ASTRONAUT)
    [face] = find_faces(analysis, image)
    crop = np.ascontiguousarray(norm_crop(image, landmark=face.kps, image_size=224)[..., ::-1])
    output = model.eval()(**processor(crop, return_tensors="pt"))
    expected = (output.pooler_output if pooled else output.last_hidden_state[:, 0])[0].numpy()
    [vector] = load_recogniser(folder, "face_recogniser").vectors(image, [face])
    assert vector == pytest.approx(expected / np.linalg.norm(expected), abs=1e-4)


def test_a_convolutional_recogniser_is_taken(analysis, tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "resnet")
    recogniser = load_recogniser(tmp_path / "resnet", "face_recogniser")
    assert reference_faces(analysis, [ASTRONAUT], recogniser=recogniser).shape == (1, 16)


def test_both_recognisers_read_each_face_once(analysis, tmp_path, monkeypatch):
    recogniser = load_recogniser(write_onnx(tmp_path / "other", seed=7), "face_recogniser")
    matchers = [
        FaceMatcher(
            analysis, [reference_faces(analysis, [photo], recogniser=judge) for photo in (ASTRONAUT, MIRRORED)], judge
        )
        for judge in (None, recogniser)
    ]
    calls = []
    get = type(analysis).get
    monkeypatch.setattr(type(analysis), "get", lambda self, *given, **how: calls.append(1) or get(self, *given, **how))
    report = evaluate([TWO_PEOPLE], "", [[ASTRONAUT], [MIRRORED]], faces=matchers[0], second=matchers[1])
    assert len(calls) == 1
    metrics = [score.metric for score in report.scores]
    assert metrics == ["face", "face", "face minimum", "face (second)", "face (second)", "face minimum (second)"]
    protocols = {score.metric: score.mean for score in report.protocols}
    assert protocols.keys() == {"face count", "MultiID", "XVerse ID", "MultiID (second)", "XVerse ID (second)"}
    assert protocols["face count"] == 1 and protocols["MultiID"] != protocols["MultiID (second)"]
    assert report.models == {"face": RECOGNITION_FILE, "second face": "judge.onnx"}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: (folder / "b.onnx").write_bytes(b""), r"has several models \(b.onnx, judge.onnx\)"),
        (lambda folder: (folder / "judge.onnx").write_bytes(b"no model"), "cannot be loaded"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "cannot be loaded"),
    ],
    ids=["two models", "damaged", "damaged settings"],
)
def test_bad_recogniser_folders_are_named(tmp_path, write, message):
    folder = write_onnx(tmp_path / "judge")
    write(folder)
    with pytest.raises(ValueError, match=f"^face_recogniser: .*{message}"):
        load_recogniser(folder, "face_recogniser")


def test_a_detector_is_no_recogniser(tmp_path):
    pack = write_face_pack(tmp_path)
    (pack / RECOGNITION_FILE).unlink()
    with pytest.raises(ValueError, match="^face_recogniser: 'buffalo_l' cannot be loaded: its output has the shape"):
        load_recogniser(pack, "face_recogniser")


def test_unseen_photos_are_checked(analysis):
    references = [reference_faces(analysis, [photo]) for photo in (ASTRONAUT, MIRRORED)]
    with pytest.raises(ValueError, match="^unseen_photos: got 1 photos for 2 subjects"):
        unseen_faces(analysis, [MIRRORED], references, "unseen_photos")
    with pytest.raises(ValueError, match="^unseen_photos: photo 2 shows the face of a reference of subject 2 itself"):
        unseen_faces(analysis, [MIRRORED, MIRRORED], references, "unseen_photos")
    with pytest.raises(ValueError, match="^unseen_photos: no face found in photo 1 of 2"):
        unseen_faces(analysis, [NO_FACE, MIRRORED], references, "unseen_photos")


def test_a_copied_reference_scores_one(analysis):
    faces = [reference_faces(analysis, [ASTRONAUT])]
    unseen = unseen_faces(analysis, [MIRRORED], faces, "unseen_photos")
    matcher = FaceMatcher(analysis, faces, unseen=unseen)
    report = evaluate([ASTRONAUT, MIRRORED, NO_FACE], "", [[ASTRONAUT]], faces=matcher)
    protocols = {score.metric: score.values for score in report.protocols}
    assert protocols["copy-paste"][:2] == pytest.approx([1, -1], abs=0.02) and protocols["copy-paste"][2] is None
    assert protocols["face count"] == (1, 1, 0) and protocols["MultiID"][2] is None


# node


@pytest.fixture
def node_models(models_folder, grounding, tmp_path, monkeypatch) -> Path:
    """models/mmdiff_evaluation with every judge; outputs in a folder of the test's own."""
    import folder_paths

    folder = models_folder / "mmdiff_evaluation"
    for name, write in (("judge_dino", write_dino), ("judge", write_onnx)):
        if not (folder / name).is_dir():
            write(folder / name)
    if not (folder / "judge_dinov2").is_dir():
        write_dino(folder / "judge_dinov2", Dinov2Model, Dinov2Config)
    shutil.copytree(grounding, folder / "grounding", dirs_exist_ok=True)
    folder_paths.add_model_folder_path("mmdiff_evaluation", str(folder), is_default=True)
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    yield folder
    for name in ("judge_dino", "judge_dinov2", "judge", "grounding"):
        shutil.rmtree(folder / name)


def run_node(**changes):
    inputs = {
        "images": TWO_PEOPLE[None],
        "prompt": "a man<|subj|> and a woman<|subj|>",
        "references": {"reference_1": ASTRONAUT[None], "reference_2": MIRRORED[None]},
        "clip_model": NONE,
        "dino_model": "judge_dino",
        "filename_prefix": "pair",
    }
    return MMDiffEvaluate.execute(**{**inputs, **changes})


def test_node_with_every_judge(node_models, analysis, tmp_path):
    assert {"judge", "judge_dino"} <= set(recogniser_names()) and "judge" not in model_names()
    table, sheet = run_node(
        face_analysis=analysis,
        dinov2_model="judge_dinov2",
        face_recogniser="judge",
        box_model="grounding",
        words="dog, cat",
        unseen_photos=torch.stack([MIRRORED[:400], ASTRONAUT[:400]]),
    ).args
    saved = json.loads((tmp_path / "pair_00001_.json").read_text(encoding="utf-8"))
    assert [score["metric"] for score in saved["scores"]][:4] == ["DINO", "DINO", "DINOv2", "DINOv2"]
    assert {score["metric"] for score in saved["protocols"]} == {
        "XVerse IP",
        "face count",
        *(f"{name}{judge}" for name in ("MultiID", "XVerse ID", "copy-paste") for judge in ("", " (second)")),
    }
    assert [swap["metric"] for swap in saved["swaps"]] == ["DINO", "face", "face (second)"]
    assert saved["swaps"][0]["words"] == ["dog", "cat"]
    assert "| XVerse IP" in table and "Swapped in" in table and sheet.shape[0] == 1


def test_node_without_the_new_inputs_gives_what_it_gave(node_models, analysis, tmp_path):
    """Prompts and workflows from before the judges were added."""
    run_node(face_analysis=analysis)
    saved = json.loads((tmp_path / "pair_00001_.json").read_text(encoding="utf-8"))
    assert [score["metric"] for score in saved["scores"]] == ["DINO", "DINO", "face", "face", "face minimum"]
    assert [score["metric"] for score in saved["protocols"]] == ["face count", "MultiID", "XVerse ID"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"face_recogniser": "judge"}, "^face_recogniser: it reads the faces that InsightFace finds. Connect face_ana"),
        ({"unseen_photos": MIRRORED[None]}, "^unseen_photos: it reads the faces"),
        ({"box_model": "grounding", "dino_model": NONE, "dinov2_model": "judge_dinov2"}, "^box_model: it finds what"),
        ({"box_model": "grounding", "words": "dog"}, "^words: box_model needs the class word of each of the 2"),
        ({"dinov2_model": "judge_dino"}, "^dinov2_model: 'judge_dino' is a model of type 'vit'"),
        ({"dino_model": NONE, "dinov2_model": "judge_dinov2", "references": {}}, "^references: .* dinov2_model"),
        ({"box_model": "judge_dino"}, "^box_model: 'judge_dino' is a model of type 'vit', grounding-dino"),
    ],
)
def test_bad_judges_are_named_and_nothing_is_written(node_models, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_node(**changes)
    assert not list(tmp_path.glob("*.json"))
