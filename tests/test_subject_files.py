"""Subjects as files and as data: saving, loading, mixing, and every file or name that is refused."""

import base64
import io
import json
import os
from dataclasses import fields, replace
from pathlib import Path

import folder_paths
import mm_diff_pack.nodes.subjects as subject_nodes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mm_diff_pack.nodes.mix import ALL_TOKENS, SPHERICAL, WEIGHTED, MMDiffMixSubjects
from mm_diff_pack.nodes.sockets import connected_subjects
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from helpers import random_subject
from mmdiff_model.mixing import join_tokens, slerp, spherical, weighted_mean
from mmdiff_model.subject import Subject, find_outliers
from mmdiff_model.subject_file import SubjectFileError, load_subject, save_subject


@pytest.fixture(scope="module")
def anna(checkpoint):
    thumbnail = torch.rand(128, 128, 3, generator=torch.Generator().manual_seed(1))
    return random_subject(
        checkpoint,
        1,
        photos=3,
        name="anna",
        strength=1.25,
        start_percent=0.1,
        end_percent=0.9,
        region=torch.rand(24, 32),
        scores=(0.9, 0.8, 0.7),
        outliers=(2,),
        thumbnail=thumbnail,
    )


@pytest.fixture(scope="module")
def bert(checkpoint):
    return random_subject(checkpoint, 2)


@pytest.fixture
def folder(tmp_path, monkeypatch, models_folder):
    """models/mmdiff_subjects and the folder for previews, of this test alone."""
    subjects = tmp_path / "mmdiff_subjects"
    subjects.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "mmdiff_subjects", ([str(subjects)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "previews"))
    return subjects


def assert_same(a: Subject, b: Subject) -> None:
    for field in fields(Subject):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if field.name == "thumbnail":
            assert torch.allclose(one, other, atol=0.5 / 255 + 1e-6)
        elif torch.is_tensor(one):
            assert torch.equal(one, other), field.name
        else:
            assert one == other, field.name


def test_round_trip(anna, tmp_path):
    save_subject(anna, tmp_path / "anna.safetensors")
    assert_same(anna, load_subject(tmp_path / "anna.safetensors"))
    assert os.listdir(tmp_path) == ["anna.safetensors"]


def test_round_trip_without_the_optional_parts(bert, tmp_path):
    save_subject(bert, tmp_path / "bert.safetensors")
    loaded = load_subject(tmp_path / "bert.safetensors")
    assert loaded.region is None
    assert loaded.thumbnail is None
    assert torch.equal(loaded.tokens, bert.tokens)


def test_round_trip_through_the_nodes(anna, folder):
    """Saved and loaded by name; the loader shows the thumbnail; an existing file is kept unless overwrite is on."""
    subject_nodes.MMDiffSaveSubject.execute(anna, "anna", False)
    output = subject_nodes.MMDiffLoadSubject.execute("anna.safetensors")
    assert_same(anna, output.args[0])
    assert len(output.ui.as_dict()["images"]) == 1
    with pytest.raises(FileExistsError, match="filename: 'anna.safetensors' is already in .*, or switch overwrite on"):
        subject_nodes.MMDiffSaveSubject.execute(anna, "anna.safetensors", False)
    subject_nodes.MMDiffSaveSubject.execute(replace(anna, name="bella"), "anna", True)
    assert subject_nodes.MMDiffLoadSubject.execute("anna.safetensors").args[0].name == "bella"


def test_a_file_saved_again_is_read_again(anna, folder):
    """The loader's fingerprint, by which ComfyUI caches, follows the file."""
    subject_nodes.MMDiffSaveSubject.execute(anna, "anna", False)
    first = subject_nodes.MMDiffLoadSubject.fingerprint_inputs("anna.safetensors")
    os.utime(folder / "anna.safetensors", (1, 1))
    assert subject_nodes.MMDiffLoadSubject.fingerprint_inputs("anna.safetensors") != first


@given(part=st.floats(0, 0.999))
@settings(max_examples=25, deadline=None)
def test_truncated_anywhere(anna, tmp_path_factory, part):
    path = tmp_path_factory.mktemp("truncated") / "anna.safetensors"
    save_subject(anna, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(SubjectFileError, match="'anna.safetensors' is truncated or not a .safetensors file"):
        load_subject(path)


def rewrite(path: Path, change) -> None:
    """Saves the file again with its header changed."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    header = json.loads(metadata["mmdiff_subject"])
    change(header)
    save_file(tensors, path, {"mmdiff_subject": json.dumps(header)})


def test_a_future_format_version(anna, tmp_path):
    path = tmp_path / "anna.safetensors"
    save_subject(anna, path)
    rewrite(path, lambda header: header.update(format_version=99))
    with pytest.raises(SubjectFileError, match="'anna.safetensors' has format version 99, .* Update the pack"):
        load_subject(path)


def test_a_header_without_a_field(anna, tmp_path):
    path = tmp_path / "anna.safetensors"
    save_subject(anna, path)
    rewrite(path, lambda header: header.pop("space"))
    with pytest.raises(SubjectFileError, match="'anna.safetensors'"):
        load_subject(path)


def picture(kind: str, size: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size)).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


FIELDS = {
    "strength": [float("nan"), float("inf"), -1, "1", None, True, 10**400],
    "start_percent": [0.95, 2, "0"],
    "end_percent": [-1, float("nan")],
    "name": [7, "a|b", "x" * 300, "a\nb", "anna ", " ", "2"],
    "space": ["", "zz", 7],
    "variant": ["other", []],
    "scores": ["abc", [float("nan")], {}],
    "outliers": [[0], [1.5], [True], None],
    "format": ["other"],
    "format_version": ["1", None, 0.5],
    "thumbnail": [picture("EPS", 32), picture("GIF", 32), picture("PNG", 5000), "no base64", 7],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in FIELDS.items() for value in values])
def test_a_field_that_is_none_of_ours(anna, tmp_path, field, value):
    """An EPS would start Ghostscript; a PNG of 5000 pixels is no thumbnail. Older files have no digest."""
    path = tmp_path / "anna.safetensors"
    save_subject(anna, path)
    rewrite(path, lambda header: (header.pop("digest"), header.update({field: value})))
    with pytest.raises(SubjectFileError, match=f"^file: 'anna.safetensors' is damaged: its {field}"):
        load_subject(path)


def test_a_file_without_a_digest_is_of_an_older_version(anna, tmp_path):
    path = tmp_path / "anna.safetensors"
    save_subject(anna, path)
    rewrite(path, lambda header: header.pop("digest"))
    assert_same(anna, load_subject(path))


@given(place=st.floats(0, 1), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_is_found(anna, tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("flipped") / "anna.safetensors"
    save_subject(anna, path)
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(SubjectFileError, match="^file: 'anna.safetensors' "):
        load_subject(path)


def test_a_foreign_safetensors(tmp_path):
    save_file({"weight": torch.zeros(4)}, tmp_path / "lora.safetensors")
    with pytest.raises(SubjectFileError, match="'lora.safetensors' is not a subject file"):
        load_subject(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    "change, named", [({"variant": "subject"}, "subject, "), ({"space": "0123456789abcdef"}, "0123456789abcdef")]
)
def test_another_checkpoints_subject_is_refused(checkpoint, anna, bert, tmp_path, change, named):
    """The message names the input, both spaces and what to do."""
    save_subject(replace(bert, **change), tmp_path / "bert.safetensors")
    loaded = load_subject(tmp_path / "bert.safetensors")
    for against in (checkpoint, None):
        with pytest.raises(
            ValueError, match=f"subjects.subject_2: .*{named}.*{checkpoint.hash}.* Encode its photos again"
        ):
            connected_subjects({"subject_1": anna, "subject_2": loaded}, against)


def test_a_file_of_absurd_numbers(anna, tmp_path):
    """Finite, and black where it is painted."""
    for change in ({"cls": anna.cls * 1e19}, {"tokens": anna.tokens * 1e7}):
        with pytest.raises(ValueError, match=f"^subject: it cannot be saved, its {next(iter(change))} holds numbers"):
            save_subject(replace(anna, **change), tmp_path / "anna.safetensors")


def test_a_folder_or_nothing_in_place_of_a_file(folder):
    (folder / "anna.safetensors").mkdir()
    with pytest.raises(SubjectFileError, match="^file: 'anna.safetensors' is a folder. Choose a file that Save"):
        load_subject(folder / "anna.safetensors")
    for name in ("", " "):
        with pytest.raises(FileNotFoundError, match="^file: no name is given. Choose one of those in "):
            subject_nodes.MMDiffLoadSubject.execute(name)


def test_a_file_in_place_of_the_folder(anna, folder):
    folder.rmdir()
    folder.write_text("")
    with pytest.raises(NotADirectoryError, match="^filename: .*mmdiff_subjects should be a folder, and is none. Move"):
        subject_nodes.MMDiffSaveSubject.execute(anna, "anna", True)


@pytest.mark.parametrize(
    "one, other, sentence",
    [
        ("anna", "Anna", "'Anna.safetensors' is the same name as 'anna.safetensors' on some systems"),
        ("zoe\u0308", "zo\u00eb", "'zoe\u0308.safetensors' is already in"),
    ],
)
def test_names_that_are_one_file_on_some_systems(anna, folder, one, other, sentence):
    """They would look alike in a list, or one would take the other's place."""
    subject_nodes.MMDiffSaveSubject.execute(anna, one, False)
    with pytest.raises(FileExistsError, match=f"^filename: {sentence}"):
        subject_nodes.MMDiffSaveSubject.execute(anna, other, False)
    subject_nodes.MMDiffSaveSubject.execute(anna, one, True)
    with pytest.raises(FileNotFoundError, match=f"^file: '{other}.*' is no longer in .*, which has '{one}.*'"):
        subject_nodes.MMDiffLoadSubject.execute(f"{other}.safetensors")


def test_overwriting_a_name_that_looks_the_same(anna, bert, folder):
    """Accents are composed in two ways, which nobody sees or types; two files of other capitals stay apart."""
    subject_nodes.MMDiffSaveSubject.execute(anna, "zoe\u0308", False)
    written = subject_nodes.MMDiffSaveSubject.execute(bert, "zo\u00eb", True).args[0]
    assert [written] == [file.name for file in folder.iterdir()] == ["zoe\u0308.safetensors"]
    assert torch.equal(subject_nodes.MMDiffLoadSubject.execute(written).args[0].cls, bert.cls)
    (folder / "ZOE\u0308.safetensors").write_text("")
    for name in ("zo\u00eb", "Zo\u00eb"):
        with pytest.raises(FileExistsError, match="is the same name as '.*' on some systems"):
            subject_nodes.MMDiffSaveSubject.execute(bert, name, True)


def test_a_name_used_twice(checkpoint, anna, bert):
    with pytest.raises(ValueError, match="subjects.subject_3: the name 'anna' is used twice"):
        connected_subjects({"subject_1": anna, "subject_2": bert, "subject_3": replace(bert, name="anna")}, checkpoint)
    assert connected_subjects({"subject_1": anna, "subject_2": None, "subject_3": bert}, checkpoint) == [anna, bert]


def test_no_subject(checkpoint):
    with pytest.raises(ValueError, match="subjects: no subject is connected"):
        connected_subjects({"subject_1": None}, checkpoint)


@pytest.mark.parametrize(
    "name", ["../anna", "../../etc/anna", "/tmp/anna", "deeper/anna", "", "  ", ".", "..", ".anna"]
)
def test_a_path_outside_the_folder_is_not_written(anna, folder, name):
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(ValueError, match="filename: '.*' is not a plain file name"):
        subject_nodes.MMDiffSaveSubject.execute(anna, name, True)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "missing.safetensors"])
def test_a_path_outside_the_folder_is_not_read(anna, folder, name):
    save_subject(anna, folder.parent / "secret.safetensors")
    with pytest.raises(FileNotFoundError):
        subject_nodes.MMDiffLoadSubject.execute(name)


@pytest.fixture
def full_disk():
    """The system refuses to write beyond 4 KB of any file."""
    resource = pytest.importorskip("resource", reason="limits of a process are Unix's")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("there_before", [True, False])
def test_a_full_disk_leaves_what_was_there(anna, bert, tmp_path, request, there_before):
    """A file of that name stays whole, and nothing is left beside it."""
    path = tmp_path / "anna.safetensors"
    if there_before:
        save_subject(bert, path)
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="could not write '.*anna.safetensors'"):
        save_subject(anna, path)
    assert os.listdir(tmp_path) == ["anna.safetensors"] * there_before
    if there_before:
        assert torch.equal(load_subject(path).tokens, bert.tokens)


def test_a_folder_that_cannot_be_made(anna, tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "folder").write_text("")
    with pytest.raises(OSError):
        save_subject(anna, tmp_path / "folder" / "anna.safetensors")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_target_that_cannot_be_replaced(anna, tmp_path):
    """A folder of that name is in the way."""
    (tmp_path / "anna.safetensors").mkdir()
    with pytest.raises(OSError):
        save_subject(anna, tmp_path / "anna.safetensors")
    assert os.listdir(tmp_path) == ["anna.safetensors"]


def test_mixing_all_tokens(anna, bert):
    mixed = join_tokens([anna, bert])
    assert torch.equal(mixed.cls, anna.cls)
    assert torch.equal(mixed.tokens, torch.cat([anna.tokens, bert.tokens]))


def test_mixing_by_weights(checkpoint, bert):
    carl = random_subject(checkpoint, 3)
    dora = random_subject(checkpoint, 4, photos=2)
    mixed = weighted_mean([bert, carl, dora], [1, 2, 5])
    assert torch.allclose(mixed.cls, (bert.cls + 2 * carl.cls + 5 * dora.cls) / 8, atol=1e-6)
    tokens = (bert.tokens[0] + 2 * carl.tokens[0] + 5 * dora.tokens.mean(dim=0)) / 8
    assert torch.allclose(mixed.tokens, tokens[None], atol=1e-6)


@pytest.mark.parametrize("mix", [weighted_mean, spherical])
def test_a_weight_of_all_or_nothing_is_one_subject(checkpoint, bert, mix):
    carl = random_subject(checkpoint, 3)
    for weights, wanted in (([1, 0], bert), ([0, 1], carl)):
        mixed = mix([bert, carl], weights)
        assert torch.allclose(mixed.cls, wanted.cls, atol=1e-5)
        assert torch.allclose(mixed.tokens, wanted.tokens, atol=1e-5)


@given(seed=st.integers(0, 10_000), t=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_spherical_interpolation(seed, t):
    """The angle grows with t along one great circle, the length from the one to the other."""
    a, b = torch.randn(2, 3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mixed = slerp(a, b, t)
    whole, part = (torch.acos(torch.cosine_similarity(a, other, dim=-1).clamp(-1, 1)) for other in (b, mixed))
    assert torch.allclose(part, t * whole, atol=1e-6)
    assert torch.allclose(mixed.norm(dim=-1), torch.lerp(a.norm(dim=-1), b.norm(dim=-1), t))


def test_spherical_interpolation_of_parallel_vectors():
    a = torch.randn(3, 64)
    assert torch.allclose(slerp(a, 3 * a, 0.5), 2 * a, atol=1e-5)


def test_mixing_node(bert, checkpoint):
    carl = random_subject(checkpoint, 3)
    connected = {"subject_1": bert, "subject_2": carl}
    execute = MMDiffMixSubjects.execute
    assert torch.equal(execute(connected, WEIGHTED, "1, 3").args[0].cls, weighted_mean([bert, carl], [1, 3]).cls)
    assert torch.equal(execute(connected, SPHERICAL, "").args[0].cls, spherical([bert, carl], [1, 1]).cls)
    assert len(execute(connected, ALL_TOKENS, "").args[0].tokens) == 2


@pytest.mark.parametrize(
    "weights, message",
    [
        ("1", "weights: got 1 weights for 2 subjects"),
        ("1, 2, 3", "weights: got 3 weights for 2 subjects"),
        ("0, 0", "weights: they must be 0 or more and not all 0"),
        ("-1, 2", "weights: they must be 0 or more"),
        ("nan, 1", "weights: "),
        ("inf, 1", "weights: "),
        ("half", "weights: 'half' is not a list of numbers"),
    ],
)
def test_bad_weights(bert, anna, weights, message):
    with pytest.raises(ValueError, match=message):
        MMDiffMixSubjects.execute({"subject_1": bert, "subject_2": anna}, WEIGHTED, weights)


def test_outliers_are_reported_by_number():
    """The photo of somebody else among five of one person; nothing among two, or where all are alike."""
    random = torch.Generator().manual_seed(4)
    person = torch.randn(512, generator=random)
    photos = person + 0.3 * torch.randn(5, 512, generator=random)
    assert find_outliers(photos) == ()
    photos[3] = torch.randn(512, generator=random)
    assert find_outliers(photos) == (4,)
    assert find_outliers(photos[2:4]) == ()


def test_region_node(bert):
    """Mask, strength, range and name go onto the subject; the identity stays."""
    execute = subject_nodes.MMDiffSubjectRegion.execute
    mask = torch.rand(1, 20, 30)
    given = execute(bert, 0.5, " bert ", 0.2, 0.8, mask).args[0]
    assert torch.equal(given.region, mask[0])
    assert (given.strength, given.name, given.start_percent, given.end_percent) == (0.5, "bert", 0.2, 0.8)
    assert given.tokens is bert.tokens
    kept = execute(given, 1.0, "", 0.0, 1.0).args[0]
    assert kept.name == "bert"
    assert torch.equal(kept.region, mask[0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mask": torch.rand(2, 8, 8)}, "mask: got a batch of 2 masks for one subject"),
        ({"mask": torch.full((8, 8), float("nan"))}, "mask: the mask holds NaN or infinite values"),
        ({"mask": torch.zeros(1, 0, 8)}, "mask: expected a mask, got shape"),
        ({"name": "a|b"}, r"name: 'a\|b' cannot stand in a trigger"),
        ({"start_percent": 0.9}, "start_percent: 0.9 is after end_percent 0.5"),
    ],
)
def test_bad_regions(bert, change, message):
    inputs = {"subject": bert, "strength": 1.0, "name": "", "start_percent": 0.0, "end_percent": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        subject_nodes.MMDiffSubjectRegion.execute(**inputs)
