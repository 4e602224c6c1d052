"""Folders of pictures: DreamBench's layout, figures that stay whatever is killed, tables, bad input, the command."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import evaluate as command_line
from conftest import ROOT
from evaluation_models import ASTRONAUT, CAT, MIRRORED, NO_FACE, SIDE, write_clip, write_dino
from mmdiff_model.evaluation.cases import (
    Classes,
    pictures_in,
    read_classes,
    read_picture,
    read_pictures,
    read_references,
)
from mmdiff_model.evaluation.encoders import load_clip, load_dino
from mmdiff_model.evaluation.figures import Models
from mmdiff_model.evaluation.folder import Judges, measure_folder, progress
from mmdiff_model.evaluation.published import ONE_SUBJECT, WARNING
from mmdiff_model.evaluation.results import Measured, Results
from mmdiff_model.evaluation.similarity import evaluate
from mmdiff_model.evaluation.summary import between_photos, metric_scores, tables
from mmdiff_model.evaluation.summary import save as write_summary
from mmdiff_model.files import lock

CLASSES = """Classes

subject_name,class
backpack_dog,backpack
cat2,cat
bear_plushie,stuffed animal

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a santa hat'.format(unique_token, class_token)
]
"""


def save(picture: torch.Tensor, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture * 255).byte().numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_clip(folder / "clip")
    write_dino(folder / "dino")
    return folder


@pytest.fixture
def world(tmp_path) -> Path:
    """Two subjects in DreamBench's layout, pictures of each and of both, most with prompts."""
    for name, photos in {"cat2": [CAT, CAT.flip(1)], "backpack_dog": [NO_FACE, NO_FACE[:400]]}.items():
        for number, photo in enumerate(photos):
            save(photo, tmp_path / "references" / name / f"{number:02}.png")
    (tmp_path / "references" / "prompts_and_classes.txt").write_text(CLASSES)
    for name, pictures in {
        "cat2": [CAT, ASTRONAUT],
        "backpack_dog": [NO_FACE],
        "cat2+backpack_dog": [MIRRORED],
    }.items():
        for number, picture in enumerate(pictures):
            path = save(picture, tmp_path / "pictures" / name / f"{number:03}.png")
            path.with_suffix(".txt").write_text("a cat in the snow")
    return tmp_path


def judges_of(world: Path, models: Path) -> Judges:
    encoders = Models(load_clip(models / "clip", "clip"), load_dino(models / "dino", "dino"))
    return Judges(encoders, read_references(world / "references"))


def files_of(world: Path) -> list:
    return read_pictures(world / "pictures", list(read_references(world / "references")))


# layouts


def test_dreambenchs_file_gives_words_and_prompts(world):
    classes = read_classes(world / "references")
    assert classes == Classes(
        {"backpack_dog": "backpack", "cat2": "cat", "bear_plushie": "stuffed animal"},
        ("a {} in the jungle", "a red {}"),
        ("a {} wearing a santa hat",),
    )
    assert classes.prompts("cat2") == classes.live and classes.prompts("backpack_dog") == classes.objects
    (world / "references" / "prompts_and_classes.txt").write_text("something else")
    with pytest.raises(ValueError, match="^references: .*prompts_and_classes.txt is not DreamBench's"):
        read_classes(world / "references")


def test_pictures_have_the_subjects_of_their_folder_and_the_prompt_beside_them(world):
    (world / "pictures" / "cat2" / "001.txt").unlink()
    found = read_pictures(world / "pictures", ["backpack_dog", "cat2"], "a cat")
    assert [(file.name, file.subjects, file.prompt) for file in found] == [
        ("backpack_dog/000.png", ("backpack_dog",), "a cat in the snow"),
        ("cat2/000.png", ("cat2",), "a cat in the snow"),
        ("cat2/001.png", ("cat2",), "a cat"),
        ("cat2+backpack_dog/000.png", ("cat2", "backpack_dog"), "a cat in the snow"),
    ]


def test_plain_folders_are_one_subject(tmp_path):
    save(CAT, tmp_path / "my cat" / "photo.jpg")
    save(CAT, tmp_path / "painted" / "1.png")
    references = read_references(tmp_path / "my cat")
    assert list(references) == ["my cat"]
    [file] = read_pictures(tmp_path / "painted", list(references))
    assert file.subjects == ("my cat",) and file.name == "1.png"


def test_folders_that_systems_keep_are_no_subjects(world):
    before, known = files_of(world), read_references(world / "references")
    for name in ("@eaDir", ".thumbnails", "__MACOSX", "#recycle"):
        save(CAT, world / "references" / name / "a.png")
        save(CAT, world / "pictures" / name / "a.png")
        save(CAT, world / "pictures" / "cat2" / name / "000.png" / "thumb.jpg")
        save(CAT, world / "references" / "cat2" / name / "00.png")
    (world / "references" / "cat2" / "Thumbs.db").touch()
    assert read_references(world / "references") == known and files_of(world) == before


def test_a_folder_named_with_a_plus_may_be_one_subject(tmp_path):
    save(CAT, tmp_path / "pictures" / "c+d" / "1.png")
    [file] = read_pictures(tmp_path / "pictures", ["c+d", "c"])
    assert file.subjects == ("c+d",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no pictures .* in "),
        (lambda folder: save(CAT, folder / "dog" / "1.png"), "'dog' should be named .* have no 'dog' .they have a, b"),
        (lambda folder: save(CAT, folder / "a+dog" / "1.png"), "have no 'dog'"),
        (lambda folder: save(CAT, folder / "1.png"), r"holds pictures itself, but there are 2 subjects.* a or a\+b"),
        (lambda folder: (folder / "a").mkdir(), "no pictures"),
    ],
    ids=["empty", "unknown", "one unknown", "not in folders", "empty folder"],
)
def test_bad_picture_folders_are_named(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=f"^pictures: .*{message}"):
        read_pictures(tmp_path, ["a", "b"])


def test_a_prompt_that_is_no_text_is_named(world):
    (world / "pictures" / "cat2" / "000.txt").write_bytes(b"\xff\xfea\x00")
    with pytest.raises(ValueError, match="000.txt is not a text in UTF-8"):
        files_of(world)


def test_references_without_pictures_are_named(tmp_path):
    with pytest.raises(ValueError, match="^references: no pictures"):
        read_references(tmp_path)
    with pytest.raises(ValueError, match="^references: the folder .* does not exist"):
        read_references(tmp_path / "gone")


def test_pictures_are_turned_and_laid_on_white(tmp_path):
    turned = Image.new("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").shape == (4, 2, 3)
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png") == 1).all()


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_pictures_of_16_bits_keep_their_greys(tmp_path, ending):
    Image.fromarray(np.array([[0, 64 * 256], [128 * 256, 65535]], dtype=np.uint16)).save(tmp_path / f"deep.{ending}")
    [file] = pictures_in(tmp_path)
    assert (read_picture(file)[..., 1] * 255).round().tolist() == [[0, 64], [128, 255]]


# measuring


def test_a_folders_figures_are_those_of_each_picture_alone(world, models, tmp_path):
    judges = judges_of(world, models)
    done = measure_folder(files_of(world), judges, Results(tmp_path / "out" / "results.jsonl", {}))
    assert not done.bad and [line.picture for line in done.lines][-1] == "cat2+backpack_dog/000.png"
    for line in done.lines:
        photos = [[read_picture(path) for path in judges.references[subject]] for subject in line.subjects]
        picture = read_picture(world / "pictures" / line.picture)
        alone = evaluate([picture], "a cat in the snow", photos, judges.models.clip, judges.models.dino)
        assert [(metric, subject) for metric, subject, _ in line.scores] == [
            (score.metric, score.subject) for score in alone.scores
        ]
        assert [value for _, _, value in line.scores] == pytest.approx([s.values[0] for s in alone.scores], abs=1e-4)


def test_every_cut_of_the_file_goes_on_to_the_same_figures(world, models, tmp_path):
    """A kill or a full disk may leave any part of what was being written."""
    judges, files = judges_of(world, models), files_of(world)
    path = tmp_path / "results.jsonl"
    whole = measure_folder(files, judges, Results(path, {"dino": "a"})).lines
    content = path.read_bytes()
    random = np.random.default_rng(0)
    ends = [0, 1, content.index(b"\n"), content.index(b"\n") + 1, len(content) - 1, len(content)]
    for end in sorted({*ends, *random.integers(len(content), size=12).tolist()}):
        path.write_bytes(content[:end])
        again = measure_folder(files, judges, Results(path, {"dino": "a"})).lines
        for one, other in zip(whole, again, strict=True):
            assert (one.picture, one.prompt, one.references) == (other.picture, other.prompt, other.references)
            assert [s[2] for s in one.scores] == pytest.approx([s[2] for s in other.scores], abs=1e-5)
        assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_only_what_has_changed_is_measured_again(world, models, tmp_path):
    judges, path = judges_of(world, models), tmp_path / "results.jsonl"
    measure_folder(files_of(world), judges, Results(path, {}))
    lines = len(path.read_bytes().splitlines())

    def measured_again(judges: Judges = judges) -> int:
        nonlocal lines
        measure_folder(files_of(world), judges, Results(path, {}))
        before, lines = lines, len(path.read_bytes().splitlines())
        return lines - before

    assert measured_again() == 0
    save(CAT, world / "pictures" / "cat2" / "001.png")
    assert measured_again() == 1
    (world / "pictures" / "backpack_dog" / "000.txt").write_text("a backpack")
    assert measured_again() == 1
    save(ASTRONAUT, world / "references" / "cat2" / "02.png")
    assert measured_again(judges_of(world, models)) == 3, "two pictures of the cat, and one of both subjects"
    save(CAT, world / "pictures" / "cat2" / "009.png")
    assert measured_again(judges_of(world, models)) == 1
    reference = save(CAT, world / "references" / "cat2" / "03.bmp")
    assert measured_again(judges_of(world, models)) == 4
    size = reference.stat().st_size
    assert save(CAT.flip(0), reference).stat().st_size == size
    assert measured_again(judges_of(world, models)) == 4, "another photo, though a file of that name and size"


def test_what_is_replaced_or_removed_while_it_is_measured_is_said_and_measured_again(world, models, tmp_path):
    """The next batch's pictures are read ahead, so that a picture may be another before its figures are written."""

    class Late(Judges):
        def case(self, file, picture):
            if file.name == "cat2/000.png":
                save(NO_FACE, file.path)
            elif file.name == "cat2/001.png":
                file.path.unlink()
            return super().case(file, picture)

    judges, files, path = judges_of(world, models), files_of(world), tmp_path / "results.jsonl"
    done = measure_folder(files, Late(judges.models, judges.references), Results(path, {}))
    assert [line.picture for line in done.lines] == ["backpack_dog/000.png", "cat2+backpack_dog/000.png"]
    meanwhile = "was replaced or removed meanwhile. Run the same command again."
    assert done.bad == [f"{world / 'pictures' / 'cat2' / name} {meanwhile}" for name in ("000.png", "001.png")]
    again = measure_folder(files_of(world), judges, Results(path, {}))
    anew = measure_folder(files_of(world), judges, Results(tmp_path / "anew.jsonl", {}))
    assert not again.bad and again.lines[1].picture == "cat2/000.png"
    values, expected = ([value for _, _, value in run.lines[1].scores] for run in (again, anew))
    assert values == pytest.approx(expected, abs=1e-4)


def test_another_model_of_the_same_name_and_size_is_another(world, models, tmp_path):
    def settings(folder: Path) -> dict:
        given = ["--pictures", "", "--references", "", "--dino", str(folder)]
        return command_line.load(command_line.arguments().parse_args(given), {}, {})[1]

    other = Path(shutil.copytree(models / "dino", tmp_path / "dino"))
    known = settings(models / "dino")
    assert settings(other) == known
    (other / "README.md").write_text("my notes")
    (other / "pytorch_model.bin").write_bytes(b"the same weights in a form that is not read")
    assert settings(other) == known
    weights = load_file(other / "model.safetensors")
    save_file({name: -tensor for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    tuned = settings(other)
    assert tuned != known and tuned["dino"][0] == known["dino"][0] == "dino"
    processor = other / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace(f'"height": {SIDE}', f'"height": {SIDE + 8}'))
    assert settings(other) not in (known, tuned), "pictures are read otherwise"


def test_other_models_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    Results(path, {"dino": ["vits16", 9]})
    with pytest.raises(
        ValueError, match=r"^output: .* was measured with another dino: \['vits16', 9\] then, \['b', 9\]"
    ):
        Results(path, {"dino": ["b", 9]})
    with pytest.raises(ValueError, match="^output: .*another clip: None then, 1 now"):
        Results(path, {"dino": ["vits16", 9], "clip": 1})
    for foreign in (b"shopping list", b"shopping list\nmilk\n", b"[]\n", b'{"a": 1}\n{"picture": 1}\n'):
        path.write_bytes(foreign)
        with pytest.raises(ValueError, match="^output: .* (damaged or not an evaluation's|another program or version)"):
            Results(path, {})
        assert path.read_bytes() == foreign


def test_a_full_disk_keeps_what_was_measured(world, models, tmp_path):
    judges, files, path = judges_of(world, models), files_of(world), tmp_path / "results.jsonl"
    measure_folder(files[:2], judges, Results(path, {}))
    size = path.stat().st_size
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
        with pytest.raises(OSError):
            measure_folder(files, judges, Results(path, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size > size, "a part of the line lies there"
    done = measure_folder(files, judges, Results(path, {}))
    assert len(done.lines) == len(files)
    assert len(path.read_bytes().splitlines()) == 1 + len(files)


def test_bad_pictures_are_named_and_passed_over(world, models, tmp_path):
    (world / "pictures" / "cat2" / "bad.png").write_bytes(b"no picture")
    done = measure_folder(files_of(world), judges_of(world, models), Results(tmp_path / "results.jsonl", {}))
    assert len(done.lines) == 4 and len(done.bad) == 1 and "bad.png cannot be read" in done.bad[0]
    (world / "references" / "cat2" / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="bad.jpg cannot be read as a picture"):
        measure_folder(files_of(world), judges_of(world, models), Results(tmp_path / "more.jsonl", {}))


def test_names_that_are_no_text_are_measured_once(world, models, tmp_path):
    (world / "pictures" / "cat2").rename(world / "pictures" / os.fsdecode(b"caf\xe9"))
    (world / "references" / "cat2").rename(world / "references" / os.fsdecode(b"caf\xe9"))
    shutil.rmtree(world / "pictures" / "cat2+backpack_dog")
    judges, said = judges_of(world, models), []
    for _ in range(2):
        done = measure_folder(files_of(world), judges, Results(tmp_path / "results.jsonl", {}), said.append)
    assert said[-1] == "3 of 3 pictures were measured before."
    write_summary(tmp_path, done.lines, tables(done.lines, [], dreambench=False), {})
    assert "| caf\\udce9" in (tmp_path / "summary.md").read_text()


# tables


def line(picture: str, subjects: list[str], dino: list[float], **protocols) -> Measured:
    scores = [["DINO", number, value] for number, value in enumerate(dino, start=1)]
    return Measured(picture, [1, 1], subjects, "", "", scores, protocols)


def test_tables_by_hand():
    lines = [
        line("a/1", ["a"], [0.2]),
        line("a/2", ["a"], [0.4]),
        line("b/1", ["b"], [0.9]),
        line("a+b/1", ["a", "b"], [0.2, 0.4], MultiID=None),
        line("a+b/2", ["a", "b"], [0.4, 0.6], MultiID=0.3),
    ]
    [one, *_] = metric_scores(lines[:3])
    assert one.mean == pytest.approx(0.5)
    text = tables(lines, [{"DINO": 0.7}, {"DINO": 0.8}], dreambench=True)
    single, double = text.split("## 2 subjects: 2 pictures")
    assert "| a       |        2 | 0.300 |" in single and "| b       |        1 | 0.900 |" in single
    assert "| DINO    | 0.400 | 0.300 to 0.500 |   2 of 2 |" in double
    assert "| MultiID | 0.300 |    one picture |   1 of 2 |" in double
    assert [row.split("|")[2:5] for row in single.splitlines() if "these references" in row] == [
        [" 0.750 ", "      - ", "      - "]
    ]
    assert WARNING in single and WARNING in double and "Subject-Diffusion" in double
    assert WARNING not in tables(lines, [], dreambench=False)
    faces = [Measured("a/1", [1, 1], ["a"], "", "", [["face", 1, 0.5]])]
    assert WARNING not in tables(faces, [], dreambench=True), "nothing of it was published"


def test_references_among_themselves_by_hand():
    photos = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert between_photos({"DINO": photos}) == {"DINO": pytest.approx((0 + 0.6 + 0.8) / 3)}
    assert between_photos({"DINO": photos[:1]}) == {}


def test_published_rows_are_figures_of_a_paper():
    for row in ONE_SUBJECT:
        assert row.source and all(value is None or 0.2 < value < 1 for value in row.values)


def test_progress_line():
    assert progress(30, 90, 10) == "30 of 90 pictures, 3.0 pictures/s, 0:20 left"


# the command


def command(world: Path, models: Path, *more: str) -> list[str]:
    given = ["--pictures", world / "pictures", "--references", world / "references", "--dino", models / "dino"]
    return [sys.executable, str(ROOT / "tools" / "evaluate.py"), *map(str, given), *more]


def run(*given, expected: int = 0) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command(*given), capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_kill_and_the_same_command(world, models):
    """Killed as soon as the first batch is there: what was measured is not measured again, and the tables are whole."""
    for number in range(160):
        shutil.copy(world / "pictures" / "cat2" / "000.png", world / "pictures" / "cat2" / f"more{number:03}.png")
    results = world / "pictures" / "evaluation" / "results.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command(world, models), stdout=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if results.exists() and results.read_bytes().count(b"\n") > 1:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    there = results.read_bytes().count(b"\n") - 1
    assert 16 <= there < 164
    said = run(world, models)
    assert f"{there} of 164 pictures were measured before." in said and "pictures/s" in said
    assert "## 1 subject: 163 pictures" in said and "these references" in said and WARNING in said
    assert "is another model" in said, "the tiny DINO is not ViT-S/16"
    assert "164 of 164 pictures were measured before." in run(world, models)
    summary = json.loads((results.parent / "summary.json").read_text())
    assert [(group["subjects"], group["pictures"]) for group in summary["groups"]] == [(1, 163), (2, 1)]


def test_the_command_says_what_is_wrong(world, models):
    said = run(world, models, "--boxes", str(models / "dino"), expected=1)
    assert "error: boxes: 'dino' is a model of type 'vit'" in said and "Traceback" not in said
    said = run(world, models, "--output", str(world / "references" / "prompts_and_classes.txt"), expected=1)
    assert "prompts_and_classes.txt is a file, a folder is needed." in said
    said = run(world, models, "--unseen", str(world / "references"), expected=1)
    assert "error: unseen: it reads the faces that InsightFace finds. Add --faces." in said


def test_an_output_that_is_in_use_is_left_alone(world, models):
    output = world / "pictures" / "evaluation"
    give_back = lock(output / ".evaluate.lock")
    said = run(world, models, expected=1)
    assert f"error: output: another evaluation is at work on {world / 'pictures'}" in said and "Traceback" not in said
    assert [path.name for path in output.iterdir()] == [".evaluate.lock"]
    give_back()
    run(world, models)
