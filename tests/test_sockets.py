"""What nodes refuse of prompts that no front end writes, and before anything loads: each sentence names its input."""

import asyncio
import inspect
import traceback

import comfy_extras.nodes_mask
import folder_paths
import pytest
import torch
from comfy_api.latest import io
from mm_diff_pack.nodes import MMDiffExtension
from mm_diff_pack.nodes.annotate import MMDiffAnnotate
from mm_diff_pack.nodes.apply import MMDiffApply, MMDiffApplyModel
from mm_diff_pack.nodes.checkpoints import MMDiffSaveCheckpoint
from mm_diff_pack.nodes.checks import check_inputs
from mm_diff_pack.nodes.encode_subject import MMDiffEncodeSubject
from mm_diff_pack.nodes.evaluate import report_path
from mm_diff_pack.nodes.mix import MMDiffMixSubjects
from mm_diff_pack.nodes.report import MMDiffReport
from mm_diff_pack.nodes.subjects import MMDiffLoadSubject, MMDiffSaveSubject, MMDiffSubjectRegion
from mm_diff_pack.nodes.write_record import MMDiffWriteRecord

from helpers import random_subject

NODES = asyncio.run(MMDiffExtension().get_node_list())
WEIGHTED, SPHERICAL = "weighted mean", "spherical"


NUMBERS = [
    (node, given)
    for node in NODES
    for given in node.define_schema().inputs
    if isinstance(given, io.Int.Input | io.Float.Input | io.Boolean.Input)
]


@pytest.fixture(scope="module")
def anna(checkpoint):
    return random_subject(checkpoint, 1)


@pytest.fixture
def inputs(tiny, checkpoint, anna):
    return {
        "model": tiny.model,
        "clip": tiny.clip,
        "mmdiff": checkpoint,
        "subjects": {"subject_1": anna},
        "positive": "a man<|subj|>",
        "negative": "",
        "fuse_scale": 0.8,
        "start_percent": 0.0,
        "end_percent": 1.0,
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"subjects": {"subject_1": "abc"}},
            "subjects.subject_1: got a value of type 'str' in place of a link of type",
        ),
        (
            {"subjects.subject_17": 1},
            "subjects.subject_17: this node has no such input. .*subjects.subject_1 to subject_16",
        ),
        ({"subjects": 5}, "subjects: got a value of type 'int' for the whole list. Connect to .*subjects.subject_1 to"),
        ({"mmdiff": "x"}, "mmdiff: got a value of type 'str' in place of a link of type MMDIFF"),
        ({"mmdiff": None}, "mmdiff: got nothing in place of a link of type MMDIFF"),
        ({"model": 3}, "model: got a value of type 'int' in place of a link of type MODEL"),
        ({"clip": {"a": 1}}, "clip: got a value of type 'dict' in place of a link of type CLIP"),
        ({"routing": "somewhere"}, "routing: 'somewhere' is not one of off, masks, auto"),
        ({"negative_fusion": "both"}, "negative_fusion: 'both' is not one of as released, clean"),
        ({"positive": 5}, "positive: got a value of type 'int' in place of a text"),
        ({"fuse_scale": "much"}, "fuse_scale: got a value of type 'str' in place of a number"),
        ({"fuse_scale": float("nan")}, "fuse_scale: nan is not within 0.0 to 2.0"),
        ({"more": 1}, "more: this node has no such input. Leave it out; it has model, clip, "),
    ],
)
def test_what_stands_in_the_place_of_another_thing(inputs, change, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        MMDiffApply.execute(**inputs | change)


@pytest.mark.parametrize("value", ["nan", "1", "", [1.0], [], {}, {"__value__": 1}, 1 + 0j, torch.tensor(1.0)], ids=str)
def test_no_number_of_any_node_takes_another_thing(value):
    for node, given in NUMBERS:
        with pytest.raises(ValueError, match=f"^{given.id}: got a value of type '{type(value).__name__}' in place of "):
            check_inputs(node.define_schema(), {given.id: value})


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), 10**400, -(10**400), -1, 2**64, 0.5, True, 0, 1, 8.0]
)
def test_every_number_of_any_node_has_limits(value):
    for node, given in NUMBERS:
        whole, truth = isinstance(given, io.Int.Input), isinstance(given, io.Boolean.Input)
        takes = value in (0, 1) if truth else not isinstance(value, bool) and given.min <= value <= given.max
        if takes and (not whole or value == int(value)):
            taken = check_inputs(node.define_schema(), {given.id: value})[given.id]
            assert taken == value and isinstance(taken, bool if truth else int if whole else int | float)
        else:
            with pytest.raises(ValueError, match=f"^{given.id}: "):
                check_inputs(node.define_schema(), {given.id: value})
    assert len(NUMBERS) > 20


def test_a_link_of_any_type_may_bring_whole_numbers_and_truths_as_others(inputs):
    """As switches and calculators of other packs do."""
    plain = MMDiffApply.execute(**inputs | {"start_merge_step": 5, "enabled": False}).args
    taken = MMDiffApply.execute(**inputs | {"start_merge_step": 5.0, "enabled": 0}).args
    assert taken[0] is plain[0]
    MMDiffApply.execute(**inputs | {"start_merge_step": 5.0, "enabled": 1})
    with pytest.raises(ValueError, match="^start_merge_step: got 0.5 in place of a whole number"):
        MMDiffApply.execute(**inputs | {"start_merge_step": 0.5})


def test_a_subject_where_a_checkpoint_belongs(inputs, anna, checkpoint):
    """As a node with an output of any type can pass it on."""
    with pytest.raises(ValueError, match="^mmdiff: got a value of type 'Subject' in place of a link of type MMDIFF"):
        MMDiffApplyModel.execute(**{key: inputs[key] for key in ("model", "subjects")}, mmdiff=anna, fuse_scale=0.8)
    with pytest.raises(ValueError, match="^subject: got a value of type 'Checkpoint' in place of a link"):
        MMDiffSubjectRegion.execute(subject=checkpoint, strength=1.0, name="", start_percent=0.0, end_percent=1.0)


def test_every_node_checks_what_arrives():
    """By its schema; none takes an input that it does not have. A report tells of anything instead of failing."""
    for node in NODES:
        if node is MMDiffReport:
            continue
        with pytest.raises(ValueError, match="^nothing_of_ours: this node has no such input. Leave it out"):
            node.execute(nothing_of_ours=1)


def test_optional_sockets_may_stay_empty():
    for node in NODES:
        for given in node.define_schema().inputs:
            if given.optional and not isinstance(given, io.Autogrow.Input):
                check_inputs(node.define_schema(), {given.id: None})


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"words": " , ;"}, "words: ' , ;' names none. Write class words, such as: dog, cat, or leave it empty."),
        ({"name": "../x"}, "name: '../x' is not a plain folder name."),
        ({"models": "gone"}, "models: 'gone' is not one of all"),
    ],
)
def test_annotation_is_refused_before_models_load(inputs, sentence):
    assert MMDiffAnnotate.validate_inputs(**inputs).startswith(sentence)
    assert MMDiffAnnotate.validate_inputs(words="", name="my data", models="all") is True
    assert MMDiffAnnotate.validate_inputs() is True


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"words": ""}, "words: there are none. Name the class word"),
        ({"caption": " \n "}, "caption: it is empty. Write what the picture shows"),
        ({"words": "dog", "caption": "a dog\na cat"}, "caption: 'dog' does not stand in \"a cat\"."),
        ({"words": "dog, dog", "caption": "a dog"}, "caption: 'dog' does not stand once more in"),
        ({"name": "CON"}, "name: 'CON' is not a plain folder name."),
    ],
)
def test_a_record_is_refused_before_anything_runs(inputs, sentence):
    assert MMDiffWriteRecord.validate_inputs(**inputs).startswith(sentence)
    assert MMDiffWriteRecord.validate_inputs(words="dog", caption="a dog\nmy dog", name="data") is True
    assert MMDiffWriteRecord.validate_inputs(words="dog") is True


def test_subjects_of_one_name_are_mixed(checkpoint):
    """Several photos of anna, each with her name; so are nameless ones."""
    for name in ("anna", ""):
        pair = {f"subject_{i}": random_subject(checkpoint, i, name=name) for i in (1, 2)}
        for mode in ("all tokens (as released)", WEIGHTED, SPHERICAL):
            assert MMDiffMixSubjects.execute(pair, mode, "").args[0].name == name


@pytest.mark.parametrize("mode", [WEIGHTED, SPHERICAL])
def test_weights_are_shares(checkpoint, mode):
    """However large: a weighting is the same when all its numbers are multiplied."""
    pair = {f"subject_{i}": random_subject(checkpoint, i) for i in (1, 2, 3)}
    plain = MMDiffMixSubjects.execute(pair, mode, "1, 0.5, 1").args[0]
    for weights in ("1e308, 0.5e308, 1e308", "1.7e308, 0.85e308, 1.7e308", "2e-300, 1e-300, 2e-300"):
        mixed = MMDiffMixSubjects.execute(pair, mode, weights).args[0]
        assert torch.allclose(mixed.cls, plain.cls) and torch.allclose(mixed.tokens, plain.tokens)
    only = MMDiffMixSubjects.execute(pair, mode, "0, 1e308, 0").args[0]
    assert torch.allclose(only.cls, pair["subject_2"].cls)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("1", "weights: got 1 weights for 2 subjects"),
        ("1, 1, 1", "weights: got 3 weights for 2 subjects"),
        ("1, x", "weights: '1, x' is not a list of numbers"),
        ("0, 0", "weights: they must be 0 or more and not all 0"),
        ("1, -1", "weights: they must be 0 or more"),
        ("1, inf", "weights: they must be 0 or more"),
        ("nan, 1", "weights: they must be 0 or more"),
    ],
)
def test_weights_are_refused_at_once(weights, sentence):
    pair = {"subject_1": None, "subject_2": None}  # linked
    assert MMDiffMixSubjects.validate_inputs(pair, WEIGHTED, weights).startswith(sentence)
    assert MMDiffMixSubjects.validate_inputs(pair, "all tokens (as released)", weights) is True


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in ("mmdiff", "mmdiff_subjects"):
        (tmp_path / name / "taken.safetensors").mkdir(parents=True)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], {".safetensors"}))
    return tmp_path


def test_nothing_is_saved_over_a_folder_or_a_link(folders, anna, checkpoint):
    with pytest.raises(FileExistsError, match="^filename: 'taken.safetensors' is a folder in .*Choose another name"):
        MMDiffSaveSubject.execute(anna, "taken", True)
    with pytest.raises(FileExistsError, match="^filename: 'taken.safetensors' is a folder in .*Choose another name"):
        MMDiffSaveCheckpoint.execute(checkpoint, "taken")
    link = folders / "mmdiff_subjects" / "link.safetensors"
    link.symlink_to(folders / "gone")
    with pytest.raises(FileExistsError, match="^filename: 'link.safetensors' is already in"):
        MMDiffSaveSubject.execute(anna, "link", False)
    (folders / "mmdiff" / "link.safetensors").symlink_to(folders / "gone")
    with pytest.raises(FileExistsError, match="^filename: 'link.safetensors' is already in .*, or delete that file"):
        MMDiffSaveCheckpoint.execute(checkpoint, "link")
    MMDiffSaveSubject.execute(anna, "link", True)
    assert not link.is_symlink() and not (folders / "gone").exists()


def test_photos_that_are_none(inputs, tiny, checkpoint):
    with pytest.raises(ValueError, match="^images: got a value of type 'str' in place of a link of type IMAGE"):
        MMDiffEncodeSubject.execute(mmdiff=checkpoint, clip_vision=tiny.clip_vision, images="photo.png")
    mask = comfy_extras.nodes_mask.SolidMask.execute(1.0, 8, 8).args[0]
    with pytest.raises(ValueError, match="^images: expected a batch of pictures, got shape"):
        MMDiffEncodeSubject.execute(mmdiff=checkpoint, clip_vision=tiny.clip_vision, images=mask)


@pytest.mark.parametrize("value", [[], {}, ["1", 0], 7, float("nan")], ids=str)
def test_json_of_any_kind_is_validated(value):
    """ComfyUI hands on what a prompt holds in a widget's place, and says itself what it does not take."""
    for node in NODES:
        names = inspect.signature(node.validate_inputs).parameters
        for given in (names, *([name] for name in names)):
            if "validate_inputs" in vars(node):
                assert isinstance(node.validate_inputs(**dict.fromkeys(given, value)), bool | str), node


def test_a_prefix_has_folders_with_either_slash(tmp_path, monkeypatch):
    """A backslash is a folder's on every system, and no part of a name that grows too long."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    path = report_path("x" * 200 + "\\" + "y" * 100, 64, 64)
    assert path.parent == tmp_path / ("x" * 200)
    path.write_text("")


@pytest.mark.parametrize("name", ["Andr\udce9.safetensors", "half\ud83d.safetensors"])
def test_messages_of_odd_names_can_be_printed(models_folder, name):
    """ComfyUI logs the whole traceback and sends the message; what cannot be encoded ends its worker."""
    path = models_folder / "mmdiff_subjects" / "Andr\udce9.safetensors"
    path.write_bytes(b"damaged")
    try:
        with pytest.raises((ValueError, FileNotFoundError)) as failure:
            MMDiffLoadSubject.execute(file=name)
        "".join(traceback.format_exception(failure.value)).encode()
    finally:
        path.unlink()
    said = MMDiffSubjectRegion.validate_inputs(name=f"|{name}")
    assert said.startswith("name:") and said.encode()
