"""Annotated records: read alike from folders and shards; whatever is wrong with one is named and passed over."""

import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ROOT
from mmdiff_model.training.dataset import Drops, Examples
from mmdiff_model.training.examples import Preparation
from mmdiff_model.training.records import BadRecord, Records

sys.path.append(str(ROOT))

from small_world.records import VISIBLE, write_records, write_shard  # noqa: E402
from small_world.scenes import make_scene, references  # noqa: E402

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


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def object_map(path: Path) -> None:
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)


DAMAGES = {
    "missing picture": lambda folder, n: file_of(folder, n, ".jpg").unlink(),
    "unreadable picture": lambda folder, n: truncate(file_of(folder, n, ".jpg")),
    "unreadable picture ": lambda folder, n: file_of(folder, n, ".jpg").write_text("no picture"),
    "missing map": lambda folder, n: file_of(folder, n, ".npy").unlink(),
    "unreadable map": lambda folder, n: truncate(file_of(folder, n, ".npy")),
    "unreadable map ": lambda folder, n: object_map(file_of(folder, n, ".npy")),
    "unreadable map  ": lambda folder, n: file_of(folder, n, ".npy").write_bytes(b""),
    "map of another size than the picture": lambda folder, n: np.save(file_of(folder, n, ".npy"), np.ones((4, 4))),
    "unreadable annotation": lambda folder, n: truncate(file_of(folder, n, ".json")),
    "unreadable annotation ": lambda folder, n: edit(folder, n, lambda record: record.pop("caption")),
    "unreadable annotation  ": lambda folder, n: edit(folder, n, lambda record: record.update(segments=3)),
    "unreadable annotation   ": lambda folder, n: edit(folder, n, lambda r: r["segments"][0].update(start="a")),
    "unreadable annotation    ": lambda folder, n: file_of(folder, n, ".json").write_text("[]"),
    "no segments": lambda folder, n: edit(folder, n, lambda record: record.update(segments=[])),
    "empty segment": lambda folder, n: edit(folder, n, lambda record: record["segments"][0].update(id=7)),
    "word not in the caption where the record says": lambda folder, n: edit(
        folder, n, lambda record: record["segments"][0].update(start=0, end=1)
    ),
    "word not in the caption where the record says ": lambda folder, n: edit(
        folder, n, lambda record: record["segments"][0].update(word="", start=0, end=0)
    ),
    "missing reference": lambda folder, n: file_of(folder, n, "_1.png").unlink(),
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
    (tmp_path / "broken.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match=r"broken\.tar is neither a folder nor a whole, uncompressed \.tar"):
        Records.open([tmp_path / "broken.tar"])


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
