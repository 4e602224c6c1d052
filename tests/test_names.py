"""Names that nodes take: what the message promises is accepted, and nothing else; every refusal names its input."""

from dataclasses import replace

import folder_paths
import pytest
from mm_diff_pack.nodes import checkpoints, evaluate, folders, subjects, train

from helpers import random_subject
from mmdiff_model.prompt import trigger_subjects
from tiny_pack.checkpoint import write_official_checkpoint

GOOD = [
    "anna",
    "Anna 2",
    "a.b-c_d",
    "\u5b89\u5a1c",
    "\u0410\u043d\u043d\u0430",
    "\u0928\u0947\u0939\u093e",
    "a" * 200,
    "console",
    "com10",
    "subject (1)",
    "anna's, bert & carl+dora",
]
BAD = [
    *(
        "~nosuchuser",
        "a\0b",
        "a" * 201,
        "a" * 300,
        "\u5b89" * 67,
        "a/b",
        "a\\b",
        "../x",
        "..",
        "a..b",
        ".x",
        "x.",
        "C:x",
        "a\nb",
    ),
    *(
        "CON",
        "con.backup",
        "nul",
        "COM1",
        "lpt9",
        "com\xb9",
        "AUX ",
        "a*",
        "a?",
        "<a>",
        "\ud800",
        "\u202ea",
        "\U0001f600",
        "$HOME",
    ),
]


TRIGGERED = ["anna*", "a/b", "a..b", "x.", "CON", "$HOME", "what?", "\U0001f600", "\u5b89" * 200, "1st"]
UNTRIGGERED = ["a|b", "<a>", "a\0b", "a\nb", "a\x7fb", "a\x85b", "a" * 201]


@pytest.fixture
def output(tmp_path, monkeypatch):
    """All folders that nodes write to."""
    for name in ("mmdiff", "mmdiff_subjects"):
        (tmp_path / name).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", GOOD)
def test_plain_names_are_taken_by_every_node(output, checkpoint, name):
    for path in (
        folders.new_file(subjects.FOLDER, name),
        folders.new_file(checkpoints.FOLDER, f" {name}.safetensors "),
        train.output_folder(name) / "state.pt",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        assert path.resolve().is_relative_to(output)
    evaluate.check_prefix(f"folder/{name[:150]}_%date:yyyy-MM-dd%")
    region = subjects.MMDiffSubjectRegion.execute(random_subject(checkpoint, 1), 1.0, name, 0.0, 1.0).args[0]
    assert region.name == name


@pytest.mark.parametrize("name", BAD)
def test_other_names_are_refused_by_every_node(output, checkpoint, name):
    before = sorted(output.rglob("*"))
    anna = random_subject(checkpoint, 1)
    with pytest.raises(ValueError, match="^filename: '.*' is not a plain file name. Use letters, digits"):
        subjects.MMDiffSaveSubject.execute(anna, name, True)
    with pytest.raises(ValueError, match="^filename: '.*' is not a plain file name. Use letters, digits"):
        checkpoints.MMDiffSaveCheckpoint.execute(checkpoint, name)
    with pytest.raises(ValueError, match="^name: '.*' is not a plain folder name. Use letters, digits"):
        train.output_folder(name)
    if "/" not in name.replace("\\", "/") or ".." in name:
        with pytest.raises(ValueError, match="^filename_prefix: '.*' is not a plain file name"):
            evaluate.check_prefix(name)
    assert sorted(output.rglob("*")) == before


@pytest.mark.parametrize("name", TRIGGERED)
def test_a_subject_has_any_name_that_a_trigger_can_hold(output, checkpoint, name):
    """It is called by it, and a subject file keeps it."""
    anna = subjects.MMDiffSubjectRegion.execute(random_subject(checkpoint, 1), 1.0, f" {name} ", 0.0, 1.0).args[0]
    assert subjects.MMDiffSubjectRegion.validate_inputs(name=name) is True
    assert trigger_subjects(f"a man<|subj|> and a woman<|subj:{name}|>", ["", anna.name]) == [0, 1]
    subjects.MMDiffSaveSubject.execute(anna, "file", True)
    assert subjects.MMDiffLoadSubject.execute("file.safetensors").args[0].name == name


@pytest.mark.parametrize("name", UNTRIGGERED)
def test_a_name_that_no_trigger_can_hold_is_refused(output, checkpoint, name):
    """Before it gets into a subject file, too."""
    anna = random_subject(checkpoint, 1)
    with pytest.raises(ValueError, match="^name: '.*' cannot stand in a trigger. Use at most 200 characters, none of"):
        subjects.MMDiffSubjectRegion.execute(anna, 1.0, name, 0.0, 1.0)
    with pytest.raises(ValueError, match="^subject: it cannot be saved, its name is"):
        subjects.MMDiffSaveSubject.execute(replace(anna, name=name), "file", True)


@pytest.mark.parametrize("name", ["~nosuchuser/data", "a\0b", "a" * 300])
def test_a_place_of_data_that_cannot_be(name):
    with pytest.raises(ValueError, match="^data: '.*' cannot be the place of anything .*Name a folder"):
        train.data_path(name)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\0b", "x" * 300, "..\\secret", "C:\\secret", "gone"])
def test_nothing_is_read_outside_the_folder(output, name):
    (output / "secret").mkdir()
    with pytest.raises(FileNotFoundError, match="^checkpoint: '.*' is no longer in "):
        checkpoints.MMDiffLoader.execute(name, False)
    with pytest.raises(FileNotFoundError, match="^file: '.*' is no longer in "):
        subjects.MMDiffLoadSubject.execute(name)


def test_a_broken_link_beside_official_files_hides_nothing(output, checkpoint):
    """Nor one that leads to itself: the folder is found, and its state changes with the links."""
    folder = output / "mmdiff" / "portrait"
    write_official_checkpoint(folder)
    before = folders.state_of(checkpoints.FOLDER, "portrait", "checkpoint")
    (folder / "notes.bin").symlink_to(output / "gone")
    (folder / "loop.bin").symlink_to(folder / "loop.bin")
    after = folders.state_of(checkpoints.FOLDER, "portrait", "checkpoint")
    assert set(before.split()) < set(after.split()) and "notes.bin" in after and "loop.bin" in after
    loaded = checkpoints.MMDiffLoader.execute(checkpoint="portrait", text_encoder_2_lora=False).args[0]
    assert loaded.hash == checkpoint.hash


def test_a_name_is_the_same_in_either_form_of_unicode():
    composed, decomposed = "jos\u00e9", "jose\u0301"
    for name, written in ((composed, decomposed), (decomposed, composed)):
        assert trigger_subjects(f"a man<|subj:{written}|>", ["", "jos", name]) == [2]
    assert trigger_subjects("a man<|subj:ann|> and a woman<|subj:anna|>", ["anna", "ann"]) == [1, 0]
