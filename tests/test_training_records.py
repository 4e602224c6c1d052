"""Annotated records: read alike from folders and shards; whatever is wrong with one is named and passed over."""

import gzip
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT
from mmdiff_model.training.dataset import Drops, Examples
from mmdiff_model.training.examples import Preparation
from mmdiff_model.training.records import BadRecord, Records

sys.path.append(str(ROOT))

from small_world.drawn.records import VISIBLE, write_records, write_shard  # noqa: E402
from small_world.drawn.scenes import make_scene, references  # noqa: E402

SCENES = [make_scene(8, number) for number in range(6)]
TWO = next(number for number, scene in enumerate(SCENES) if len(scene.looks) == 2)


@pytest.fixture
def folder(tmp_path) -> Path:
    write_records(tmp_path / "data", SCENES)
    return tmp_path / "data"


def file_of(folder: Path, number: int, ending: str) -> Path:
    return folder / "00000" / f"{number:09d}{ending}"


def edit(folder: Path, number: int, change) -> None:
    """Changes a record's annotation."""
    path = file_of(folder, number, ".json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_records_say_what_the_scenes_say(folder):
    records = Records.open([folder])
    assert len(records) == len(SCENES)
    for number, scene in enumerate(SCENES):
        record = records.read(number)
        assert record.caption == scene.caption
        assert np.abs(record.picture.astype(int) - scene.picture).mean() < 2
        assert [(one.start, one.end) for one in record.segments] == list(scene.spans)
        for one, reference in zip(record.segments, references(scene, 0), strict=True):
            assert one.word == record.caption[one.start : one.end]
            assert np.array_equal(one.reference, reference)
        visible = [mask >= VISIBLE for mask in scene.masks]
        assert all(np.array_equal(one.mask, mask) for one, mask in zip(record.segments, visible, strict=True))


def test_shards_hold_the_same_records(folder, tmp_path):
    write_shard(tmp_path / "records.tar", SCENES)
    both = Records.open([folder, tmp_path / "records.tar"])
    assert len(both) == 2 * len(SCENES)
    for number in range(len(SCENES)):
        one, other = both.read(number), both.read(len(SCENES) + number)
        assert one.caption == other.caption and np.array_equal(one.picture, other.picture)
        for mine, theirs in zip(one.segments, other.segments, strict=True):
            assert (mine.word, mine.start, mine.end) == (theirs.word, theirs.start, theirs.end)
            assert np.array_equal(mine.mask, theirs.mask) and np.array_equal(mine.reference, theirs.reference)


def test_shards_of_the_same_scenes_are_the_same_file(tmp_path):
    for name in ("one.tar", "two.tar"):
        write_shard(tmp_path / name, SCENES[:2])
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_the_order_does_not_depend_on_the_disk(folder, tmp_path):
    copy = tmp_path / "copy" / "00000"
    copy.mkdir(parents=True)
    for path in sorted((folder / "00000").iterdir(), reverse=True):
        shutil.copy(path, copy)
    captions = [[Records.open([place]).read(number).caption for number in (4, 0, 2)] for place in (folder, copy.parent)]
    assert captions[0] == captions[1] == [SCENES[number].caption for number in (4, 0, 2)]


def test_without_a_reference_the_subject_is_cut_from_the_picture(folder):
    edit(folder, 0, lambda record: record["segments"][0].pop("reference"))
    assert Records.open([folder]).read(0).segments[0].reference is None


def test_pictures_stay_as_stored_and_become_rgb(folder):
    orientation = Image.Exif()
    orientation[0x0112] = 6
    picture = Image.fromarray(SCENES[0].picture[:96]).convert("L")
    picture.save(file_of(folder, 0, ".jpg"), exif=orientation, quality=95)
    numbers = np.load(file_of(folder, 0, ".npy"))
    np.save(file_of(folder, 0, ".npy"), numbers[:96])
    record = Records.open([folder]).read(0)
    assert record.picture.shape == (96, 128, 3) and record.segments[0].mask.shape == (96, 128)
    assert np.abs(record.picture.astype(int) - np.asarray(picture)[..., None]).mean() < 2


def test_a_reference_is_read_as_a_person_sees_it(folder):
    """Turned as its EXIF says, and on white where it is transparent: what lies hidden there is no part of the photo."""
    turned = Image.Exif()
    turned[0x0112] = 6
    path = file_of(folder, 0, "_1.png")
    Image.new("RGBA", (40, 20), (255, 0, 0, 0)).save(path, exif=turned)
    reference = Records.open([folder]).read(0).segments[0].reference
    assert reference.shape == (40, 20, 3) and (reference == 255).all()


def test_a_transparent_picture_is_on_white(folder):
    file_of(folder, 0, ".jpg").unlink()
    picture = np.dstack([SCENES[0].picture, np.zeros((128, 128), np.uint8)])
    Image.fromarray(picture).save(file_of(folder, 0, ".png"))
    assert (Records.open([folder]).read(0).picture == 255).all()


CHANGES = {
    "a caption": lambda folder: edit(folder, 0, lambda record: record.update(caption=record["caption"].swapcase())),
    "a word's number": lambda folder: segment(folder, 0, id=3),
    "a picture": lambda folder: Image.new("RGB", (128, 128)).save(file_of(folder, 0, ".jpg")),
    "a reference": lambda folder: Image.new("RGB", (96, 96)).save(file_of(folder, 0, "_1.png")),
    "a map": lambda folder: np.save(file_of(folder, 0, ".npy"), np.ones((64, 64))),
    "one less": lambda folder: file_of(folder, 5, ".json").unlink(),
    "one more": lambda folder: write_records(folder, [*SCENES, make_scene(8, 6)]),
    "one without its picture": lambda folder: file_of(folder, 0, ".jpg").unlink(),
}


def test_a_data_set_is_the_same_wherever_and_however_it_lies(folder, tmp_path):
    digest = Records.open([folder]).digest()
    shutil.copytree(folder, tmp_path / "copy" / "of it")
    with tarfile.open(tmp_path / "records.tar", "w") as archive:
        archive.add(folder, ".")
    places = tmp_path / "copy" / "of it", tmp_path / "records.tar"
    assert {Records.open([place]).digest() for place in places} == {digest}
    Image.new("RGB", (9, 9)).save(folder / "contact_sheet.jpg")
    (folder / "annotation_0.csv").write_text("done")
    assert Records.open([folder]).digest() == digest and digest.startswith("6 records ")


def test_a_map_that_is_painted_over_is_another(folder, tmp_path):
    with tarfile.open(tmp_path / "records.tar", "w") as archive:
        archive.add(folder, ".")
    records, map_file = Records.open([folder]), file_of(folder, TWO, ".npy")
    digest, before, times = records.digest(), records.map_digest(), records.map_times()
    assert Records.open([tmp_path / "records.tar"]).map_digest() == before
    numbers = np.load(map_file)
    numbers[:8] = 1
    np.save(map_file, numbers)
    os.utime(map_file, ns=(1, 1))
    assert Records.open([folder]).map_times() != times
    assert Records.open([folder]).digest() == digest and Records.open([folder]).map_digest() != before
    map_file.unlink()
    assert Records.open([folder]).map_digest() not in (before, digest)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_data_set_with_a_change_is_another(folder, change):
    before = Records.open([folder]).digest()
    change(folder)
    assert Records.open([folder]).digest() != before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def object_map(path: Path) -> None:
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)


def segment(folder: Path, number: int, **values) -> None:
    """Changes a record's first segment."""
    edit(folder, number, lambda record: record["segments"][0].update(values))


def damage_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"(128, 128)", b"((((128,12"))


def double(record: dict) -> None:
    record["segments"] = record["segments"][:1] * 2


# spaces at the end tell damages of one reason apart
DAMAGES = {
    "missing picture": lambda folder, n: file_of(folder, n, ".jpg").unlink(),
    "unreadable picture": lambda folder, n: truncate(file_of(folder, n, ".jpg")),
    "unreadable picture ": lambda folder, n: file_of(folder, n, ".jpg").write_text("no picture"),
    "missing map": lambda folder, n: file_of(folder, n, ".npy").unlink(),
    "unreadable map": lambda folder, n: truncate(file_of(folder, n, ".npy")),
    "unreadable map ": lambda folder, n: object_map(file_of(folder, n, ".npy")),
    "unreadable map  ": lambda folder, n: file_of(folder, n, ".npy").write_bytes(b""),
    "unreadable map   ": lambda folder, n: damage_header(file_of(folder, n, ".npy")),
    "unreadable map    ": lambda folder, n: np.save(file_of(folder, n, ".npy"), np.zeros((128, 128), "i4,i4")),
    "map of another size than the picture": lambda folder, n: np.save(file_of(folder, n, ".npy"), np.ones((4, 4))),
    "unreadable annotation": lambda folder, n: truncate(file_of(folder, n, ".json")),
    "unreadable annotation ": lambda folder, n: edit(folder, n, lambda record: record.pop("caption")),
    "unreadable annotation  ": lambda folder, n: edit(folder, n, lambda record: record.update(segments=3)),
    "unreadable annotation   ": lambda folder, n: segment(folder, n, start="a"),
    "unreadable annotation    ": lambda folder, n: file_of(folder, n, ".json").write_text("[]"),
    "unreadable annotation     ": lambda folder, n: file_of(folder, n, ".json").write_text("[" * 100_000),
    "unreadable annotation      ": lambda folder, n: segment(folder, n, reference=3),
    "unreadable annotation       ": lambda folder, n: segment(folder, n, id=[1, 2]),
    "unreadable annotation        ": lambda folder, n: edit(folder, n, lambda record: record.update(caption=["man"])),
    "no segments": lambda folder, n: edit(folder, n, lambda record: record.update(segments=[])),
    "empty segment": lambda folder, n: segment(folder, n, id=7),
    "empty segment ": lambda folder, n: segment(folder, n, id=0),
    "word not in the caption where the record says": lambda folder, n: segment(folder, n, start=0, end=1),
    "word not in the caption where the record says ": lambda folder, n: segment(folder, n, word="", start=0, end=0),
    "word not in the caption where the record says  ": lambda folder, n: segment(
        folder, n, word=SCENES[n].caption[-3:], start=-3, end=len(SCENES[n].caption)
    ),
    "word not in the caption where the record says   ": lambda folder, n: segment(
        folder, n, word=SCENES[n].caption[-3:], start=len(SCENES[n].caption) - 3, end=999
    ),
    "two segments of one word": lambda folder, n: edit(folder, n, double),
    "missing reference": lambda folder, n: file_of(folder, n, "_1.png").unlink(),
    "missing reference ": lambda folder, n: segment(folder, n, reference=""),
    "missing reference  ": lambda folder, n: segment(folder, n, reference="../00000/000000000_1.png"),
    "unreadable reference": lambda folder, n: truncate(file_of(folder, n, "_1.png")),
}


@pytest.mark.parametrize("kind", ["folder", "shard"])
@pytest.mark.parametrize("reason", DAMAGES)
def test_a_bad_record_is_named_with_its_reason(folder, tmp_path, reason, kind):
    DAMAGES[reason](folder, 1)
    place = folder
    if kind == "shard":
        place = tmp_path / "records.tar"
        with tarfile.open(place, "w") as archive:
            archive.add(folder, ".")
    records = Records.open([place])
    with pytest.raises(BadRecord) as caught:
        records.read(1)
    assert caught.value.reason == reason.strip()
    assert str(caught.value) == f"{place.name}/00000/000000001: {reason.strip()}"
    assert records.read(0).caption == SCENES[0].caption


def test_places_that_hold_nothing_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data: .*nowhere does not exist\. Name a folder or a \.tar"):
        Records.open([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"data: no \.json of a record in .*empty\. A record is a picture"):
        Records.open([tmp_path / "empty"])


def test_data_without_any_picture_is_refused(folder):
    for path in folder.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(
        ValueError, match=r"data: no \.jpg, \.jpeg, \.png, \.webp beside any \.json in .*data\. A record is"
    ):
        Records.open([folder])


@pytest.mark.parametrize("damage", ["no archive", "compressed", "within a file", "between files", "a header"])
def test_broken_shards_are_refused(tmp_path, damage):
    path = tmp_path / "broken.tar"
    write_shard(path, SCENES[:2])
    with tarfile.open(path) as archive:
        header = archive.getmembers()[4].offset
    content = bytearray(path.read_bytes())
    content[header] ^= 255
    whole = path.read_bytes()
    path.write_bytes(
        {
            "no archive": b"no archive" * 100,
            "compressed": gzip.compress(whole),
            "within a file": whole[: header + 600],
            "between files": whole[:header],
            "a header": bytes(content),
        }[damage]
    )
    with pytest.raises(ValueError, match=r"data: .*broken\.tar is neither a folder nor a whole, uncompressed \.tar"):
        Records.open([path])


def examples(tiny, folder: Path) -> Examples:
    prepare = Preparation(tiny.model.model, tiny.clip, tiny.vae, tiny.clip_vision, "subject", 64)
    return Examples(Records.open([folder]), prepare, Drops(), seed=0)


def test_bad_records_are_counted_named_and_passed_over(tiny, folder, caplog):
    file_of(folder, 1, ".npy").unlink()
    edit(folder, TWO, lambda record: record["segments"][1].update(id=9))
    source = examples(tiny, folder)
    names = [name for step in range(6) for name in source.batch(step, 2).names]
    assert len(names) == 12 and len(set(names)) == len(SCENES) - 2
    assert source.rejected == {"missing map": 1, "empty segment": 1}
    assert "skipped: data/00000/000000001: missing map" in caplog.text
    assert torch.equal(source.batch(3, 2).noise, examples(tiny, folder).batch(3, 2).noise)


def test_data_with_nothing_usable_says_why(tiny, folder):
    for path in folder.rglob("*.npy"):
        path.unlink()
    with pytest.raises(ValueError, match=r"data: none of the 6 records can be used \(6 x missing map\)"):
        examples(tiny, folder).batch(0, 1)


@pytest.mark.parametrize("caption", ["a cat<|subj|> waving", ".. waving"])
def test_a_caption_that_hides_its_word_is_passed_over(tiny, folder, caption):
    word = {"word": caption[:2], "start": 0, "end": 2}
    edit(folder, 0, lambda record: record.update(caption=caption, segments=[{"id": 1, **word}]))
    source = examples(tiny, folder)
    assert "data/00000/000000000" not in [name for step in range(6) for name in source.batch(step, 2).names]
    assert source.rejected == {"no class word where the record says": 1}
