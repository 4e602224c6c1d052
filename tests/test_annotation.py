"""Annotation: real transformers models with tiny weights; filters and formats on scenes whose truth is known."""

import errno
import json
import os
import shutil
import signal
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from conftest import ROOT
from mmdiff_model.annotation import writers
from mmdiff_model.annotation.annotator import Annotator
from mmdiff_model.annotation.captioner import Captioner
from mmdiff_model.annotation.detector import Detector
from mmdiff_model.annotation.earlier import changed
from mmdiff_model.annotation.folders import CAPTIONER, DETECTOR, MODELS, SEGMENTER, find_models
from mmdiff_model.annotation.journal import WRITTEN, Journal
from mmdiff_model.annotation.listing import list_pictures
from mmdiff_model.annotation.pictures import content, read_caption, read_picture, record_name, stamp
from mmdiff_model.annotation.segmenter import Segmenter
from mmdiff_model.annotation.share import lock_share
from mmdiff_model.annotation.sheet import draw_sheet
from mmdiff_model.annotation.words import NO_WORD, Box, Rejected
from mmdiff_model.annotation.writers import FolderWriter, ShardWriter, names_in
from mmdiff_model.model_folders import load_folder
from mmdiff_model.training.records import Record, Records
from tiny_annotators import write_blip2, write_florence2, write_grounding_dino, write_sam, write_sam2

sys.path.append(str(ROOT))

from small_world.drawn.records import VISIBLE  # noqa: E402
from small_world.drawn.scenes import make_scene  # noqa: E402

SCENES = [make_scene(3, number) for number in range(6)]
PICTURES = [Image.fromarray(scene.picture) for scene in SCENES]
WORDS = tuple(sorted({look.word for scene in SCENES for look in scene.looks}))
WRITERS = {
    "dino": write_grounding_dino,
    "sam": write_sam,
    "sam2": write_sam2,
    "florence2": write_florence2,
    "blip2": write_blip2,
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One folder of each kind of model."""
    root = tmp_path_factory.mktemp("models")
    return {name: write(root / name, 1) for name, write in WRITERS.items()}


def stay(model):
    return lambda: CPU


def loaded(folder, role):
    return load_folder(folder, MODELS[role], "models", stay)


class TrueDetector:
    """Finds the characters of the scenes where they are."""

    def boxes(self, pictures, words):
        return [
            [
                Box(look.word, edges_of(mask), 0.9)
                for look, mask in zip(scene.looks, scene.masks, strict=True)
                if look.word in asked
            ]
            for scene, asked in zip(map(scene_of, pictures), words, strict=True)
        ]


class TrueSegmenter:
    """The characters of the scenes, by their boxes."""

    def masks(self, pictures, boxes):
        return [
            np.stack([next(mask for mask in scene.masks if edges_of(mask) == box) >= VISIBLE for box in own])
            for scene, own in zip(map(scene_of, pictures), boxes, strict=True)
        ]


def scene_of(picture):
    return next(scene for scene in SCENES if np.array_equal(scene.picture, np.asarray(picture)))


def edges_of(mask):
    rows, columns = np.nonzero(mask >= VISIBLE)
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


TRUE = Annotator(TrueDetector(), TrueSegmenter(), None, WORDS)


def annotate(captions, annotator=TRUE):
    return annotator.annotate([f"scene_{number}" for number in range(len(SCENES))], PICTURES, captions)


def assert_true(record: Record, scene) -> None:
    assert record.caption == scene.caption
    assert [(one.start, one.end) for one in record.segments] == list(scene.spans)
    for one, mask in zip(record.segments, scene.masks, strict=True):
        assert one.word == scene.caption[one.start : one.end]
        assert np.array_equal(one.mask, mask >= VISIBLE)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_scenes_become_the_records_that_they_are(tmp_path, kind):
    writer = FolderWriter(tmp_path) if kind == "folder" else ShardWriter(tmp_path, 4)
    for record in annotate([scene.caption for scene in SCENES]):
        writer.write(record)
    writer.close()
    records = Records.open([tmp_path])
    assert names_in(tmp_path) == {f"scene_{number}" for number in range(len(SCENES))}
    for number, scene in enumerate(SCENES):
        record = records.read(number)
        assert_true(record, scene)
        assert np.abs(record.picture.astype(int) - scene.picture).mean() < 3
    assert len(list(tmp_path.glob("*.tar"))) == (0 if kind == "folder" else 2)


def test_boxes_in_the_annotation_are_those_of_the_masks(tmp_path):
    FolderWriter(tmp_path).write(annotate([scene.caption for scene in SCENES])[0])
    segment = json.loads((tmp_path / "scene_0.json").read_text())["segments"][0]
    assert segment["box"] == [int(edge) for edge in edges_of(SCENES[0].masks[0])]


def test_pictures_without_captions_get_one_of_what_is_found():
    for record, scene in zip(annotate([None] * len(SCENES)), SCENES, strict=True):
        words = [look.word for look in scene.looks]
        assert sorted(one.word for one in record.segments) == sorted(words)
        assert record.caption.startswith("a photo of a ")
        assert all(record.caption[one.start : one.end] == one.word for one in record.segments)
        lefts = [np.nonzero(one.mask)[1].min() for one in record.segments]
        assert lefts == sorted(lefts)


def test_one_word_for_two_characters():
    scene = next(scene for scene in SCENES if len(scene.looks) == 2)

    class Both(TrueDetector):
        def boxes(self, pictures, words):
            return [[Box("robot", edges_of(mask), 0.9) for mask in scene.masks] for _ in pictures]

    annotator = Annotator(Both(), TrueSegmenter(), None, ("robot",))
    picture = [Image.fromarray(scene.picture)]
    (record,) = annotator.annotate(["two"], picture, ["a robot waves at a robot"])
    assert [(one.word, one.start) for one in record.segments] == [("robot", 2), ("robot", 19)]
    assert np.nonzero(record.segments[0].mask)[1].mean() < np.nonzero(record.segments[1].mask)[1].mean()
    (record,) = annotator.annotate(["two"], picture, [None])
    assert record.caption == "a photo of a robot and a robot" and len(record.segments) == 2
    (rejected,) = annotator.annotate(["two"], picture, ["a robot"])
    assert rejected.reason.startswith("more or fewer boxes of one word")


def test_a_caption_without_the_words_is_rejected_with_itself():
    result = annotate(["a plate of soup", *[scene.caption for scene in SCENES[1:]]])
    assert (result[0].reason, result[0].caption) == (NO_WORD, "a plate of soup")
    assert all(isinstance(one, Record) for one in result[1:])


def test_where_masks_overlap_the_smaller_stays_and_a_hidden_one_goes():
    class Overlapping(TrueSegmenter):
        def masks(self, pictures, boxes):
            masks = super().masks(pictures, boxes)
            for one in masks:
                one[0] = True
            return masks

    number = next(number for number, scene in enumerate(SCENES) if len(scene.looks) == 2)
    annotator = Annotator(TrueDetector(), Overlapping(), None, WORDS)
    record = annotate([scene.caption for scene in SCENES], annotator)[number]
    whole, small = record.segments
    assert np.array_equal(whole.mask, ~small.mask)


def test_an_empty_mask_is_no_record():
    class Blind(TrueSegmenter):
        def masks(self, pictures, boxes):
            return [one & False for one in super().masks(pictures, boxes)]

    results = annotate([None] * len(SCENES), Annotator(TrueDetector(), Blind(), None, WORDS))
    assert {str(one) for one in results} == {"no mask for any box"}


@pytest.mark.parametrize("segmenter", ["sam", "sam2"])
def test_a_real_segmenter_gives_masks_of_each_pictures_own_size(models, segmenter):
    part = Segmenter(loaded(models[segmenter], SEGMENTER))
    sizes = [(100, 70), (64, 128), (128, 128)]
    pictures = [PICTURES[0].resize(size) for size in sizes]
    boxes = [[(5.0, 5.0, 60.0, 60.0)], [(0.0, 0.0, 30.0, 90.0), (30.0, 20.0, 60.0, 120.0)], [(0.0, 0.0, 128.0, 128.0)]]
    masks = part.masks(pictures, boxes)
    assert [mask.shape for mask in masks] == [(1, 70, 100), (2, 128, 64), (1, 128, 128)]
    assert all(mask.dtype == bool for mask in masks)
    alone = part.masks(pictures[1:2], boxes[1:2])[0]
    assert np.mean(alone != masks[1]) < 0.01  # a batch is its pictures


def test_a_real_detector_stays_within_the_picture_and_above_its_threshold(models, tmp_path):
    from mmdiff_model.annotation.detector import BOX_THRESHOLD, Detector

    part = Detector(loaded(write_grounding_dino(tmp_path / "dino", queries=12), DETECTOR))
    pictures = [PICTURES[0], PICTURES[1].resize((90, 128))]
    found = part.boxes(pictures, [["cat", "Dog"], ["man"]])
    assert any(found)
    for boxes, picture in zip(found, pictures, strict=True):
        for box in boxes:
            left, top, right, bottom = box.edges
            assert 0 <= left <= right <= picture.width and 0 <= top <= bottom <= picture.height
            assert box.score > BOX_THRESHOLD
            assert set(box.label.split()) <= {"cat", "dog", "man"}
    with pytest.raises(ValueError, match=r"words: they are \d+ tokens, and the detector reads 64\. Give fewer words"):
        part.boxes(pictures[:1], [["cat"] * 40])


@pytest.mark.parametrize("captioner", ["florence2", "blip2"])
def test_a_real_captioner_writes_a_text_for_each_picture(models, captioner):
    part = Captioner(loaded(models[captioner], CAPTIONER))
    captions = part.captions(PICTURES[:3])
    assert len(captions) == 3 and all(isinstance(caption, str) for caption in captions)
    assert part.grounds is (captioner == "florence2")


def test_florences_phrases_are_read_from_what_it_writes(models, monkeypatch):
    part = Captioner(loaded(models["florence2"], CAPTIONER))
    assert part.phrases(PICTURES[:2], ["a cat", "a dog and a man"]) == [[], []]  # random weights point at nothing
    written = "</s><s>a cat<loc_1><loc_2><loc_300><loc_400>a man running<loc_5><loc_6><loc_7><loc_8></s>"
    monkeypatch.setattr(part.loaded.processor, "batch_decode", lambda *_, **__: [written])
    assert part.phrases(PICTURES[:1], ["a cat and a man running"]) == [["a cat", "a man running"]]
    annotator = Annotator(TrueDetector(), TrueSegmenter(), part, ())
    (places,) = annotator.phrases(PICTURES[:1], ["a cat and a man running"])
    assert [(place.text, place.start) for place in places] == [("a cat", 0)]


def test_boxes_are_the_same_whatever_else_is_in_the_batch(tmp_path):
    detector = Detector(loaded(write_grounding_dino(tmp_path / "dino", 1, queries=8), DETECTOR))
    pictures = [PICTURES[0], PICTURES[1].crop((0, 0, 128, 80)), PICTURES[2], PICTURES[3].crop((0, 0, 70, 128))]
    words = [["cat"], ["cat"], ["cat", "robot"], ["cat"]]
    together = detector.boxes(pictures, words)
    alone = [detector.boxes([picture], [own])[0] for picture, own in zip(pictures, words, strict=True)]
    assert all(together)
    for found, single in zip(together, alone, strict=True):
        assert [box.label for box in found] == [box.label for box in single]
        assert np.allclose([box.edges for box in found], [box.edges for box in single], atol=1e-3)


@pytest.mark.parametrize("segmenter", ["sam", "sam2"])
def test_all_real_models_together(models, tmp_path, segmenter):
    places = [models["dino"], models[segmenter], models["blip2"]]
    annotator = Annotator.load(places, WORDS, stay, torch.float32)
    results = annotate([scene.caption for scene in SCENES], annotator)
    records = [one for one in results if isinstance(one, Record)]
    assert records
    for record in records:
        FolderWriter(tmp_path).write(record)
    assert [Records.open([tmp_path]).read(number).caption for number in range(len(records))] == [
        record.caption for record in records
    ]
    for record in annotate([None] * len(SCENES), annotator):  # now with whatever the captioner says
        if isinstance(record, Record):
            assert all(record.caption[one.start : one.end] == one.word for one in record.segments)
            assert not record.caption.startswith("a photo of")


def together(models, tmp_path, *names):
    """A folder that holds some of the models."""
    for name in names:
        shutil.copytree(models[name], tmp_path / "set" / name)
    return tmp_path / "set"


def test_models_are_told_apart_by_their_types(models, tmp_path):
    place = together(models, tmp_path, "dino", "sam2", "florence2")
    (place / "readme").mkdir()
    found = find_models([place], "--models")
    assert {role: folder.name for role, folder in found.items()} == {
        CAPTIONER: "florence2",
        DETECTOR: "dino",
        SEGMENTER: "sam2",
    }


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["sam"], r"--models: no detector in .*set\. It takes a detector \(IDEA-Research/grounding-dino-base\)"),
        (["dino", "blip2"], r"--models: no segmenter in "),
        (["dino", "sam", "sam2"], r"--models: 'sam' and 'sam2' are both a segmenter\. Name a folder that holds one"),
    ],
)
def test_a_set_of_models_that_does_not_do_is_named(models, tmp_path, names, problem):
    with pytest.raises(ValueError, match=problem):
        find_models([together(models, tmp_path, *names)], "--models")


def test_a_folder_of_another_model_is_told_from_an_empty_one(models, tmp_path):
    place = together(models, tmp_path, "sam")
    (place / "vit").mkdir()
    (place / "vit" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(
        ValueError, match=r"--models: no detector in .*set \('vit' is a model of type 'vit'\)\. It takes"
    ):
        find_models([place], "--models")


def test_a_place_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--models: .*nowhere is not a folder\. It takes a detector"):
        find_models([tmp_path / "nowhere"], "--models")


def test_a_model_that_transformers_does_not_know_yet_asks_for_another_transformers(models, monkeypatch):
    monkeypatch.setitem(MODELS[SEGMENTER].classes, "sam2", ("Sam2024Model", "Sam2Processor"))
    with pytest.raises(ValueError, match=r"models: 'sam2' is a model that .* \(Sam2024Model\)\. Update transf"):
        loaded(models["sam2"], SEGMENTER)


def change_type(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "sam"}))


def drop_weights(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "decoder" in name))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


DAMAGES = {
    r"config\.json in .* is damaged": lambda folder: (folder / "config.json").write_text("{"),
    r"'sam2' cannot be loaded: .*transformers itself reads, such as those of facebook": change_type,
    r"'sam2' cannot be loaded: its weights lack [\w.]*decoder": drop_weights,
    r".*sam2' lacks its weights \(model\.safetensors\)": lambda folder: (folder / "model.safetensors").unlink(),
    r"'sam2' cannot be loaded: .*": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:1000]
    ),
    r".*sam2' lacks preprocessor_config\.json": lambda folder: (folder / "processor_config.json").unlink(),
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_a_model_folder_that_cannot_be_loaded_is_named(models, tmp_path, problem):
    place = together(models, tmp_path, "dino", "sam2")
    DAMAGES[problem](place / "sam2")
    with pytest.raises(ValueError, match=f"(?s)^models: {problem}"):
        Annotator.load([place], WORDS, stay, torch.float32)


@pytest.mark.parametrize("captioner", [(), ("blip2",)])
def test_without_words_only_florence_will_do(models, tmp_path, captioner):
    place = together(models, tmp_path, "dino", "sam", *captioner)
    with pytest.raises(ValueError, match=r"words: there are none, and only Florence-2 takes them from captions"):
        Annotator.load([place], (), stay, torch.float32)


def test_pictures_are_seen_as_a_person_sees_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    PICTURES[0].crop((0, 0, 128, 96)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg", 1024).size == (96, 128)
    clear = Image.new("RGBA", (80, 80), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png", 1024).getpixel((3, 3)) == (255, 255, 255)
    Image.fromarray(np.full((80, 80), 128 * 256, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png", 1024).getpixel((3, 3)) == (128, 128, 128)
    PICTURES[0].convert("CMYK").save(tmp_path / "print.tif")
    assert read_picture(tmp_path / "print.tif", 64).size == (64, 64)
    PICTURES[0].resize((40, 400)).save(tmp_path / "narrow.png")
    with pytest.raises(Rejected, match="picture of less than 64 pixels"):
        read_picture(tmp_path / "narrow.png", 1024)


def test_a_folder_is_listed_without_what_is_hidden_or_written(tmp_path):
    systems = ("@eaDir/c.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/f.jpg", "a/.thumbnails/g.jpg", "$RECYCLE.BIN/h.png")
    for name in ("b.PNG", "a/c.jpg", "a/notes.txt", ".hidden.jpg", ".trash/d.jpg", "out/e.jpg", *systems):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert [file.as_posix() for file in list_pictures(tmp_path, tmp_path / "out")] == ["a/c.jpg", "b.PNG"]
    with pytest.raises(ValueError, match=r"output: .* is the folder of the pictures\. Name a folder of its own"):
        list_pictures(tmp_path, tmp_path / "a" / "..")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"pictures: .*empty holds none \(\.jpg, .*Name the folder of your photos"):
        list_pictures(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"pictures: .*nowhere is not a folder"):
        list_pictures(tmp_path / "nowhere", tmp_path / "out")


def test_folders_behind_links_are_listed_once(tmp_path):
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for folder in (photos / "b", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.jpg").touch()
    for name, target in {"anna": elsewhere, "b/all": photos, "c": photos / "b", "loop": photos / "loop"}.items():
        (photos / name).symlink_to(target)
    (photos / "a link").symlink_to(photos / "b")  # before its target in the order of names
    assert [file.as_posix() for file in list_pictures(photos, tmp_path / "out")] == ["anna/a.jpg", "b/a.jpg"]


def test_what_an_annotation_has_written_is_no_photo(tmp_path):
    photos = tmp_path / "photos"
    record = annotate([scene.caption for scene in SCENES])[0]
    FolderWriter(photos / "by a node").write(record)
    FolderWriter(photos / "data" / "deep").write(record)
    (photos / "data" / "deep" / "scene_0.npy").unlink()
    Journal(photos / "data", "aa")
    (photos / "annotation_1.csv").write_text("file,label\na.jpg,dog\n")  # another tool's
    for name in ("a.jpg", "with json.jpg", "contact_sheet.jpg"):
        PICTURES[0].save(photos / name)
    (photos / "with json.json").write_text("{}")
    said = []
    assert [file.name for file in list_pictures(photos, tmp_path / "out", said.append)] == ["a.jpg", "with json.jpg"]
    assert said == [
        "left out: 3 pictures that an annotation has written, in "
        f"{photos}, {photos / 'by a node'}, {photos / 'data' / 'deep'}"
    ]
    with pytest.raises(ValueError, match=r"^pictures: all in .*data were written by an annotation. Name the folder"):
        list_pictures(photos / "data", tmp_path / "out", said.append)
    with pytest.raises(
        ValueError, match=r"^output: .* holds the folder of the pictures, .*photos. Name a folder besid"
    ):
        list_pictures(photos, tmp_path)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "unreadable picture: it is HEIC, which Pillow does not read here. Save",
        ),
        (b"", "unreadable picture$"),
    ],
)
def test_a_phones_format_without_a_reader_is_named(tmp_path, head, reason):
    (tmp_path / "IMG_0001.HEIC").write_bytes(head)
    with pytest.raises(Rejected, match=f"^{reason}"):
        read_picture(tmp_path / "IMG_0001.HEIC", 64)


def test_a_broken_heic_is_not_called_unknown_where_a_plug_in_reads_heic(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0")
    monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
    with pytest.raises(Rejected, match="^unreadable picture$"):
        read_picture(tmp_path / "a.heic", 64)


def test_a_file_that_cannot_be_opened_is_an_unreadable_picture(tmp_path, monkeypatch):
    """A file without the right to read it, or on a bad disk."""
    PICTURES[0].save(tmp_path / "a.png")

    def refuse(*_, **__):
        raise PermissionError("no right to read it")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(Rejected, match="^unreadable picture$"):
        read_picture(tmp_path / "a.png", 64)


def test_a_picture_beyond_pillows_limit_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    Image.new("1", (2000, 2000)).save(tmp_path / "a.png")
    with pytest.raises(
        Rejected, match=r"^unreadable picture: it has more than 2 megapixels, Pillow's limit. Save it sm"
    ):
        read_picture(tmp_path / "a.png", 64)


def test_records_of_pictures_with_like_names_are_kept_apart(tmp_path):
    files = ["my dog.jpg", "my_dog.jpg", "my dog.png", "a/my dog.jpg", "my.dog.jpg"]
    names = {record_name(tmp_path.__class__(file)) for file in files}
    assert len(names) == len(files) and not any("." in name or " " in name for name in names)


def test_captions_beside_pictures(tmp_path):
    assert read_caption(tmp_path / "dog.jpg") is None
    (tmp_path / "dog.txt").write_text("\ufeff a dog\n on a sofa \n", encoding="utf-8")
    assert read_caption(tmp_path / "dog.jpg") == "a dog on a sofa"
    (tmp_path / "dog.txt").write_bytes("a dog".encode("utf-16"))  # as Windows has saved it for long
    with pytest.raises(Rejected, match="^unreadable caption: save its .txt as UTF-8"):
        read_caption(tmp_path / "dog.jpg")


def test_what_is_in_a_caption_counts_not_how_it_is_saved(tmp_path, monkeypatch):
    picture, caption = tmp_path / "dog.jpg", tmp_path / "dog.txt"
    picture.write_bytes(b"a picture")
    bare = content(picture)
    for empty in (b"", b"\xef\xbb\xbf\r\n"):
        caption.write_bytes(empty)
        assert content(picture) == bare
    found = set()
    for same in (b"a dog\n", b"a dog\r\n", b"\xef\xbb\xbfa dog"):
        caption.write_bytes(same)
        found.add(content(picture))
    caption.write_bytes("a dog".encode("utf-16"))
    assert len(found) == 1 and len({*found, bare, content(picture), ""}) == 4
    caption.unlink()
    caption.mkdir()  # cannot be read
    assert content(picture) == ""


@pytest.mark.parametrize("cut", [0, 100, 512, 5000, -1, -600])
def test_a_shard_that_was_cut_off_keeps_its_whole_records(tmp_path, cut):
    writer = ShardWriter(tmp_path, 100)
    for record in annotate([scene.caption for scene in SCENES])[:3]:
        writer.write(record)
        end = writer.file.tell()
    writer.file.close()  # as a kill does
    content = writer.path.read_bytes()
    assert len(content) == end and names_in(tmp_path) == {"scene_0", "scene_1", "scene_2"}
    writer.path.write_bytes(content[:cut] if cut else b"")
    left = names_in(tmp_path)
    assert left == ({"scene_0", "scene_1"} if cut < 0 else set())
    again = ShardWriter(tmp_path, 100)
    assert not list(tmp_path.glob(".*")) and names_in(tmp_path) == left
    for record in annotate([scene.caption for scene in SCENES]):
        if record.name not in left:
            again.write(record)
    again.close()
    records = Records.open([tmp_path])
    for number, scene in enumerate(SCENES):
        assert_true(records.read(number), scene)
    with tarfile.open(sorted(tmp_path.glob("*.tar"))[-1]) as archive:
        assert all(member.isfile() for member in archive)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_folder_whose_name_is_no_text_has_records(tmp_path, kind):
    name = os.fsdecode(b"caf\xe9/scene")
    writer = FolderWriter(tmp_path) if kind == "folder" else ShardWriter(tmp_path, 4)
    writer.write(replace(annotate([scene.caption for scene in SCENES])[0], name=name))
    writer.close()
    assert names_in(tmp_path) == {name}
    assert_true(Records.open([tmp_path]).read(0), SCENES[0])


def two_records() -> tuple[Record, Record]:
    """Of one name: another caption, other words and another map."""
    one, other = annotate([scene.caption for scene in SCENES])[:2]
    return one, replace(other, name=one.name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process of its own")
@pytest.mark.parametrize("ending", [".npy", ".json"])
def test_a_record_that_a_kill_leaves_half_replaced_is_no_record(tmp_path, ending):
    old, new = two_records()
    writer = FolderWriter(tmp_path)
    writer.write(old)
    if not (child := os.fork()):
        rename = os.replace

        def kill_before(source, target):
            if Path(target).suffix == ending:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = kill_before
        writer.write(new)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert names_in(tmp_path) == set()
    writer.write(new)
    record = Records.open([tmp_path]).read(0)
    assert record.caption == new.caption and np.array_equal(record.segments[0].mask, new.segments[0].mask)


def test_a_full_disk_keeps_a_record_that_is_written_again(tmp_path, monkeypatch):
    old, new = two_records()
    FolderWriter(tmp_path).write(old)

    def full(content, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writers, "store", full)
    FolderWriter(tmp_path).write(old)
    assert names_in(tmp_path) == {old.name}
    with pytest.raises(OSError, match="No space left"):
        FolderWriter(tmp_path).write(new)
    assert names_in(tmp_path) == set()


def test_a_shard_that_is_renamed_while_shards_are_listed_is_seen(tmp_path, monkeypatch):
    writer = ShardWriter(tmp_path, 100)
    writer.write(annotate([scene.caption for scene in SCENES])[0])
    listed = writers.partials

    def rename_first(folder):
        writer.close()
        return listed(folder)

    monkeypatch.setattr(writers, "partials", rename_first)
    assert names_in(tmp_path) == {"scene_0"}


def test_a_shard_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A power cut may lose what was not flushed, and keep a rename."""
    flushed, fsync, rename = {}, os.fsync, os.replace

    def note(handle):
        fsync(handle)
        flushed[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    def check(source, target):
        assert flushed.get(os.stat(source).st_ino) == os.stat(source).st_size
        flushed.clear()
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", check)
    writer = ShardWriter(tmp_path, 100)
    writer.write(annotate([scene.caption for scene in SCENES])[0])
    writer.close()
    assert tmp_path.stat().st_ino in flushed, "the rename is flushed too"


def test_a_share_is_not_taken_from_a_process_that_is_at_work(tmp_path):
    """Of two processes the first has ended: what the second does falls to a single one only when that has ended too."""
    lock_share(tmp_path, 0, 2)()
    second = lock_share(tmp_path, 1, 2)
    with pytest.raises(BlockingIOError):
        lock_share(tmp_path, 0, 1)
    lock_share(tmp_path, 0, 2)()
    second()
    (tmp_path / ".annotate-old.lock").touch()
    alone = lock_share(tmp_path, 0, 1)
    for rank in (0, 1):
        with pytest.raises(BlockingIOError):
            lock_share(tmp_path, rank, 2)
    alone()
    lock_share(tmp_path, 1, 2)()


def test_a_shard_of_another_living_process_is_left_alone(tmp_path):
    records = annotate([scene.caption for scene in SCENES])
    one, two = ShardWriter(tmp_path, 100, 0, 2), ShardWriter(tmp_path, 100, 1, 2)
    one.write(records[0])
    two.write(records[1])
    assert names_in(tmp_path) == {"scene_0", "scene_1"}
    ShardWriter(tmp_path, 100, 1, 2)  # the second starts again
    assert one.path.exists() and not two.path.exists()
    one.write(records[2])
    one.close()
    assert names_in(tmp_path) == {"scene_0", "scene_1", "scene_2"} and len(Records.open([tmp_path])) == 3


def test_pictures_that_have_a_record_by_now_were_not_passed_over(tmp_path):
    """Found by mending a picture that a second process could not read, and going on with one."""
    Journal(tmp_path, "aa", 1).add("a b.jpg", "unreadable picture")
    Journal(tmp_path, "aa", 1).add("c.jpg", "unreadable picture")
    journal = Journal(tmp_path, "aa", 0)
    journal.add("a b.jpg", WRITTEN, "dog")
    journal.add("c.jpg", "no box, or none")
    assert journal.passed_over(set()) == {"c.jpg": "no box, or none"}, "the later run's"
    other = Journal(tmp_path, "aa", 1)
    assert other.passed_over({record_name(Path("a b.jpg"))}) == {"c.jpg": "no box, or none"}
    other.add("c.jpg", "no mask")
    assert journal.passed_over(set()) == {"c.jpg": "no mask"}


def test_the_journal_forgets_the_line_that_was_cut_off(tmp_path):
    journal = Journal(tmp_path, "aa")
    journal.add("a.jpg", "no box, or none", caption='he said "hi"\nand left')
    journal.add("a novel.jpg", WRITTEN, caption="word " * 50_000)
    journal.add("b.jpg", WRITTEN, "dog")
    with journal.path.open("ab") as file:
        file.write(b"c.jpg,aa,no bo")
    again = Journal(tmp_path, "aa")
    again.add("d.jpg", "no box, or none")
    assert again.passed_over(()) == {"a.jpg": "no box, or none", "d.jpg": "no box, or none"}
    assert Journal(tmp_path, "bb").passed_over(()) == {}  # other words: all of them are tried again
    assert [row["caption"] for row in again.rows()][0] == 'he said "hi" and left'
    assert Journal(tmp_path, "aa", 1).passed_over(()) == again.passed_over(())


def test_an_older_versions_journal_has_no_stamps(tmp_path):
    (tmp_path / "annotation_0.csv").write_text("picture,settings,outcome,words,caption\na.jpg,aa,written,dog,a dog\n")
    journal = Journal(tmp_path, "aa")
    journal.add("b.jpg", WRITTEN, "dog", "a dog", ("5-6", "cc"))
    assert [row["stamp"] for row in Journal(tmp_path, "aa").last().values()] == ["", "5-6"]
    assert journal.path.read_text().startswith(
        "picture,settings,outcome,words,caption,stamp,content,run,folder\na.jpg,aa,written,dog,a dog\n"
    )


@pytest.fixture
def noted(tmp_path):
    """Two pictures that have a record, one that was passed over, and what a start of annotation finds of a folder."""
    folder, done = tmp_path / "photos", {record_name(Path(name)) for name in ("a.jpg", "b.jpg")}
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.jpg").write_bytes(name.encode())

    def start(folder: Path = folder) -> tuple[set[str], Journal]:
        journal = Journal(tmp_path / "out", "aa", 0, str(folder))
        files = sorted(file.relative_to(folder) for file in folder.glob("*.jpg"))
        return {file.name for file in changed(folder, files, journal, done)}, journal

    _, journal = start()
    journal.add("c.jpg", "no box, or none", seen=(stamp(folder / "c.jpg"), content(folder / "c.jpg")))
    return folder, start


def test_a_record_without_a_row_is_compared_from_then_on(noted):
    """As an older journal, or one that was deleted, leaves it."""
    folder, start = noted
    assert start()[0] == set()
    (folder / "a.jpg").write_bytes(b"another")
    assert start()[0] == {"a.jpg"}


def test_a_picture_that_was_only_touched_is_read_once(noted, monkeypatch):
    folder, start = noted
    for name in "abc":
        os.utime(folder / f"{name}.jpg", (1, 1))
    assert start()[0] == set()
    assert start()[1].passed_over(()) == {"c.jpg": "no box, or none"}
    monkeypatch.setattr("mmdiff_model.annotation.earlier.content", lambda _: pytest.fail("it was read again"))
    start()


def test_a_picture_that_cannot_be_read_has_not_changed(noted):
    folder, start = noted
    (folder / "a.txt").mkdir()
    os.utime(folder / "a.jpg", (1, 1))
    assert start()[0] == set()


def test_another_folders_pictures_do_not_replace_records(noted, tmp_path):
    """Found by a second folder with names such as IMG_0001.jpg: it took the records of the first away."""
    folder, start = noted
    other = tmp_path / "more"
    other.mkdir()
    for name in ("c.jpg", "d.jpg"):
        (other / name).write_bytes(b"other")
    found, journal = start(other)
    assert found == set() and journal.passed_over(()) == {}, "c.jpg is another picture than the one passed over"
    (other / "b.jpg").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"^output: 1 of its records .*more: that of b.jpg is of .*photos. Choose ano"):
        start(other)


def test_a_folder_that_was_moved_keeps_its_records(noted, tmp_path):
    folder, start = noted
    moved = folder.rename(tmp_path / "elsewhere")
    assert start(moved)[0] == set()
    (moved / "a.jpg").write_bytes(b"another")
    assert start(moved)[0] == {"a.jpg"}


def test_a_start_empties_no_journal(tmp_path, monkeypatch):
    Journal(tmp_path, "aa").add("a.jpg", "no box, or none")
    monkeypatch.setattr(Path, "write_bytes", lambda path, _: path.open("wb").close())  # as a kill leaves it
    assert Journal(tmp_path, "aa").passed_over(()) == {"a.jpg": "no box, or none"}


def test_the_sheet_shows_masks_words_and_reasons():
    results = annotate(["a plate of soup", *[scene.caption for scene in SCENES[1:]]])
    pictures = [scene.picture for scene in SCENES]
    sheet = np.asarray(draw_sheet(pictures, results)).astype(int)
    plain = np.asarray(draw_sheet(pictures, [Rejected(NO_WORD)] * len(SCENES))).astype(int)
    assert sheet.shape == plain.shape
    assert (np.abs(sheet - plain).sum(axis=-1) > 60).mean() > 0.1
    assert draw_sheet(pictures * 12, results * 12).height > draw_sheet(pictures[:1], results[:1]).height


def test_whatever_pillow_raises_is_an_unreadable_picture(tmp_path):
    """Every bit of a picture's EXIF damaged in turn: Pillow's plug-ins raise struct.error and TypeError too."""
    path, exif, raised = tmp_path / "a.jpg", Image.Exif(), set()
    exif[0x0112], exif[0x011A], exif[0x010E] = 6, 72.0, "a dog"
    Image.new("RGB", (80, 80)).save(path, exif=exif)
    whole = path.read_bytes()
    for bit in range(8 * 20, 8 * (whole.index(b"a dog") + 6)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read_picture(path, 64)
        except Rejected as error:
            raised.add(type(error.__cause__.__cause__))
    assert raised - {OSError, ValueError, SyntaxError, UnidentifiedImageError}
