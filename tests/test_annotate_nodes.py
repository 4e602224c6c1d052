"""Annotate Pictures and Write Training Record: what they write is what training reads, and a step is trained on it."""

import shutil
import sys

import folder_paths
import numpy as np
import pytest
import torch

from conftest import PACK, ROOT
from mmdiff_model.training.config import Data, Settings
from mmdiff_model.training.objective import Losses
from mmdiff_model.training.plan import Plan
from mmdiff_model.training.processes import Processes
from mmdiff_model.training.records import Records
from mmdiff_model.training.session import Session
from mmdiff_model.training.trainable import Shape
from tiny_annotators import write_grounding_dino, write_sam, write_sam2

sys.path.append(str(ROOT))

from small_world.drawn.records import VISIBLE  # noqa: E402
from small_world.drawn.scenes import make_scene  # noqa: E402
from small_world.phases.phase import load_base  # noqa: E402

annotate = sys.modules[f"{PACK}.nodes.annotate"]
write_record = sys.modules[f"{PACK}.nodes.write_record"]
data_path = sys.modules[f"{PACK}.nodes.train"].data_path

SCENES = [make_scene(3, number) for number in range(8)]
IMAGES = torch.stack([torch.tensor(scene.picture).float() / 255 for scene in SCENES])
WORDS = ", ".join(sorted({look.word for scene in SCENES for look in scene.looks}))
TWO = next(scene for scene in SCENES if len(scene.looks) == 2)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Input, temporary and models folders of the test's own."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    paths = [str(tmp_path / "models")], {".json"}
    monkeypatch.setitem(folder_paths.folder_names_and_paths, annotate.FOLDER, paths)
    folder_paths.filename_list_cache.pop(annotate.FOLDER, None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"dino": write_grounding_dino(root / "dino"), "sam2": write_sam2(root / "sam2")}


@pytest.fixture
def models(made, tmp_path):
    for name, folder in made.items():
        shutil.copytree(folder, tmp_path / "models" / name)
    return tmp_path / "models"


def run(words: str = WORDS, images=IMAGES, models: str = "all", name: str = "mine"):
    return annotate.MMDiffAnnotate.execute(images, models, words, name).args


def write(scene=TWO, **changes) -> str:
    """Writes a scene as the record that it is."""
    inputs = {
        "image": torch.tensor(scene.picture).float()[None] / 255,
        "mask": torch.from_numpy((scene.masks >= VISIBLE).astype(np.float32)),
        "words": ", ".join(look.word for look in scene.looks),
        "caption": scene.caption,
        "name": "mine",
    }
    return write_record.MMDiffWriteRecord.execute(**{**inputs, **changes}).args[0]


def records(data: str) -> list:
    opened = Records.open([data_path(data)])
    return [opened.read(number) for number in range(len(opened))]


def test_pictures_become_records_and_a_sheet(models):
    data, sheet = run()
    assert data == "mmdiff_data/mine"
    found = records(data)
    assert 0 < len(found) <= len(SCENES)
    for record in found:
        assert record.caption.startswith("a photo of a ")
        assert any(np.abs(record.picture.astype(int) - scene.picture).mean() < 3 for scene in SCENES)
    assert sheet.shape[0] == 1 and sheet.shape[-1] == 3 and 0 <= sheet.min() < 0.5 < sheet.max() <= 1
    names = {record.name for record in found}
    assert {record.name for record in records(run()[0])} == names  # nothing twice
    own = next(n for n, scene in enumerate(SCENES) if np.abs(found[0].picture.astype(int) - scene.picture).mean() < 3)
    assert {record.name for record in records(run(images=IMAGES[own, None])[0])} == names  # other pictures' stay


def test_a_picture_that_gives_no_record_any_more_loses_its_own(models):
    data, _ = run()
    before = {record.name: record for record in records(data)}
    keep = next(iter(before.values())).segments[0].word
    run(words=keep)
    assert {record.segments[0].word for record in records(data)} == {keep}


def test_pictures_without_any_record_are_an_error_that_says_why(models):
    with pytest.raises(
        ValueError, match=r"words: no picture gave a record \(8 x no box for .*\)\. .*Choose words that"
    ):
        run(words="zebra")
    assert not (data_path("mmdiff_data/mine")).exists() or not list(data_path("mmdiff_data/mine").glob("*.json"))


def test_sets_of_models_lie_in_folders(models, tmp_path):
    assert annotate.model_sets() == ["all"]
    shutil.copytree(models / "dino", models / "fast" / "dino")
    write_sam(models / "fast" / "sam")
    folder_paths.filename_list_cache.pop(annotate.FOLDER, None)
    assert annotate.model_sets() == ["all", "fast"]
    assert records(run(models="fast")[0])
    assert records(run()[0])
    shutil.rmtree(models / "fast")
    with pytest.raises(FileNotFoundError, match=r"models: 'fast' is no longer in"):
        run(models="fast")


def test_missing_models_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"models: .*models is not a folder\. It takes a detector"):
        run()
    (tmp_path / "models").mkdir()
    with pytest.raises(ValueError, match=r"models: no detector in .*IDEA-Research/grounding-dino-base"):
        run()


@pytest.mark.parametrize("name", ["", "..", "a/b", "../mine", ".hidden", "/tmp/mine"])
def test_names_that_lead_elsewhere_are_refused(models, name):
    with pytest.raises(ValueError, match="name: .* is not a plain folder name"):
        run(name=name)
    with pytest.raises(ValueError, match="name: .* is not a plain folder name"):
        write(name=name)


def test_a_written_record_is_read_as_it_is():
    (record,) = records(write())
    assert record.caption == TWO.caption
    assert [(one.start, one.end) for one in record.segments] == list(TWO.spans)
    for one, mask in zip(record.segments, TWO.masks, strict=True):
        assert np.array_equal(one.mask, mask >= VISIBLE)
    assert len(records(write())) == 1
    assert len(records(write(mask=torch.from_numpy((TWO.masks > 0).astype(np.float32)).flip(2)))) == 2


def test_a_batch_is_written_picture_by_picture():
    ones = [scene for scene in SCENES if len(scene.looks) == 1][:3]
    images = torch.stack([torch.tensor(scene.picture).float() / 255 for scene in ones])
    masks = torch.stack([torch.tensor(scene.masks[0]).float() / 255 for scene in ones])[:, ::2, ::2]
    data = write(image=images, mask=masks, words="pet", caption="\n".join(f"pet {number}" for number in range(3)))
    found = sorted(records(data), key=lambda record: record.caption)
    assert [record.caption for record in found] == ["pet 0", "pet 1", "pet 2"]
    for record, scene in zip(found, ones, strict=True):
        assert (record.segments[0].mask != (scene.masks[0] >= VISIBLE)).mean() < 0.03
    assert len(records(write(image=images, mask=masks, words="pet", caption="one pet"))) == 6


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"words": "zebra, dragon"}, r"caption: 'zebra' does not stand in"),
        ({"words": " ,"}, r"words: there are none\. Name the class word"),
        ({"words": "pet", "caption": "a pet"}, r"mask: every word .* which makes 1, but the number of masks is 2\."),
        ({"caption": "one\ntwo"}, r"caption: it has 2 lines for 1 pictures"),
        ({"caption": ""}, r"caption: it is empty"),
        ({"mask": torch.zeros(2, 128, 128)}, r"mask: a mask of picture 1 is empty\. Paint the subject"),
        ({"mask": torch.ones(2, 128, 128)}, r"mask: a mask of picture 1 is hidden by another"),
        ({"mask": torch.full((2, 8, 8), float("nan"))}, r"mask: the mask holds NaN"),
        ({"image": torch.full((1, 8, 8, 3), float("nan"))}, r"image: photo 1 holds NaN"),
    ],
)
def test_bad_input_is_named_and_nothing_written(changes, problem):
    with pytest.raises(ValueError, match=problem):
        write(**changes)
    assert not data_path("mmdiff_data").exists()


def test_a_step_is_trained_on_two_of_one_word(small_weights, tmp_path):
    data = write(words="robot, robot", caption="a robot and a robot in a park")
    write(next(scene for scene in SCENES if len(scene.looks) == 1))
    (pair,) = [record for record in records(data) if len(record.segments) == 2]
    assert [(one.word, one.start) for one in pair.segments] == [("robot", 2), ("robot", 14)]
    settings = Settings(
        output=tmp_path / "run",
        variant="subject",
        data=Data((), 128),
        plan=Plan(steps=2, rate=1e-3, warmup=1, batch_size=2, ema_steps=1),
        shape=Shape(depth=1, token_hidden=32, lora_rank=2, text_lora_rank=2, vision_layers=1),
        losses=Losses("masked", 0.1, snr_limit=5.0),
    )
    figures = []
    session = Session(
        settings, load_base(small_weights), Records.open([data_path(data)]), Processes(torch.device("cpu"))
    )
    assert session.run(after=lambda step, values: figures.append(values["loss"]))
    assert len(figures) == 2 and all(np.isfinite(figures)) and not session.examples.rejected
    (example,) = [one for one in map(session.examples.load, range(2)) if len(one.masks) == 2]
    assert all(len(set(places)) == 2 for places in example.positions.values())
    assert session.checkpoint.is_file()
