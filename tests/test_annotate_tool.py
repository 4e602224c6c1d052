"""tools/annotate.py as a command: progress, bad input, kills, a full disk, and several processes."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT
from mmdiff_model.files import lock
from mmdiff_model.training.records import Records
from tiny_annotators import write_grounding_dino, write_sam2

sys.path.append(str(ROOT))

from small_world.drawn.scenes import make_scene  # noqa: E402

WORDS = "rabbit, robot, man, cat, dog, woman"
COUNT = 30
FINISHED, FAILED = 0, 1


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_grounding_dino(folder / "dino", 1)
    write_sam2(folder / "sam2")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Scenes with captions in .txt files, one picture without, and three that cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for number in range(COUNT):
        scene = make_scene(3, number)
        place = folder / ("more" if number % 2 else "") / f"scene {number:02}"
        Image.fromarray(scene.picture).save(place.with_suffix(".png"))
        place.with_suffix(".txt").write_text(scene.caption)
    (folder / "scene 00.txt").unlink()
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (folder / os.fsdecode(b"caf\xe9.png")).touch()
    (folder / "phone.heic").write_text("another format")
    return folder


@pytest.fixture
def command(pictures, models, tmp_path):
    def make(*options: str, launch: tuple[str, ...] = ()) -> list[str]:
        return line(pictures, models, tmp_path / "out", *options, launch=launch)

    return make


@pytest.fixture(scope="module")
def whole(pictures, models, tmp_path_factory) -> list[str]:
    """The records of an undisturbed run."""
    output = tmp_path_factory.mktemp("whole")
    run(line(pictures, models, output))
    return names(output)


def line(pictures: Path, models: Path, output: Path, *options: str, launch: tuple[str, ...] = ()) -> list[str]:
    places = ["--pictures", str(pictures), "--models", str(models), "--output", str(output)]
    given = () if "--words" in options else ("--words", WORDS)
    return [sys.executable, *launch, str(ROOT / "tools" / "annotate.py"), *places, *given, *options]


ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONIOENCODING": "utf-8:strict",  # as in the locales of most people
}


def run(command: list[str], expected: int = FINISHED, limit: int | None = None) -> str:
    """What a command printed. limit: bytes that a file of it may have, as on a disk that is full."""

    def small_disk():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        preexec_fn=small_disk if limit else None,
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def names(output: Path) -> list[str]:
    """The records of an output folder, all of which can be read."""
    records = Records.open([output])
    found = [records.read(number).name.rpartition("/")[2] for number in range(len(records))]
    assert len(set(found)) == len(found)
    return sorted(found)


def rows(output: Path) -> list[dict[str, str]]:
    files = (file.open(encoding="utf-8", errors="surrogateescape") for file in sorted(output.glob("*.csv")))
    return [row for file in files for row in csv.DictReader(file)]


def test_a_folder_becomes_records(command, tmp_path):
    printed = run(command("--batch", "4"))
    output = tmp_path / "out"
    assert f"{COUNT + 3} pictures, {COUNT + 3} of them left for process 1 of 1" in printed
    for bad in ("broken.jpg", "caf\\udce9.png", "phone.heic"):
        assert f"passed over: {bad}: unreadable picture" in printed
    assert "passed over: 3 x unreadable picture" in printed
    found = names(output)
    assert found and f"{COUNT + 3}/{COUNT + 3} pictures, {len(found)} records, " in printed
    assert " pictures/s, 0:00:" in printed and f"{len(found)} records in {output}." in printed
    assert len(rows(output)) == COUNT + 3
    assert Image.open(output / "contact_sheet.jpg").width > 1000

    again = run(command("--batch", "4"))
    assert f"{COUNT + 3} pictures, 3 of them left" in again  # those that somebody may have mended
    assert names(output) == found

    other = run(command("--words", "dog, unicorn", "--batch", "4"))
    assert f"{COUNT + 3 - len(found)} of them left" in other
    assert "warning: --words: none of these" in other and "gave a record of 'unicorn'" in other
    assert set(names(output)) >= set(found)


def test_a_picture_or_caption_that_has_changed_is_annotated_again(pictures, models, tmp_path):
    folder, output = tmp_path / "few", tmp_path / "out"
    shutil.copytree(pictures, folder)
    command = line(folder, models, output, "--batch", "4")
    run(command)
    found = names(output)
    gone, told, other = (next(folder.rglob(f"{name[:5]} {name[6:8]}.png")) for name in found[:3])
    Image.new("RGB", (128, 128), "white").save(gone)
    told.with_suffix(".txt").write_text(f"{told.with_suffix('.txt').read_text()} at noon")
    (told.parent / "new caption.png").write_bytes(told.read_bytes())
    run(command, FAILED, limit=100)
    assert len(names(output)) >= len(found) - 1, "the record of a picture whose result is not known yet stays"
    printed = run(command)
    assert " pictures or captions have changed since, and are annotated again" in printed
    records = Records.open([output])
    captions = {
        records.read(number).name.rpartition("/")[2]: records.read(number).caption for number in range(len(records))
    }
    assert captions[found[1]].endswith(" at noon")
    assert found[0] not in captions or (records.read(0).picture > 250).all()
    os.utime(gone)  # as after a copy
    printed = run(command)
    assert "have changed since" not in printed and "records are of pictures that are not" not in printed
    (moved := told.with_name("moved.png")).write_bytes(told.read_bytes())
    told.unlink()
    assert f"1 records are of pictures that are not in {folder}, such as {told.relative_to(folder)}" in run(command)
    moved.replace(told)

    shards = line(folder, models, tmp_path / "shards", "--shards", "9")
    run(shards)
    told.with_suffix(".txt").write_text("a robot")
    other.unlink()
    printed = run(shards)
    assert f"{other.name}. They stay: delete the .tar files, and have all pictures annotated again," in printed
    assert "warning: 1 pictures have changed since their records were written into shards, such as" in printed
    assert names(tmp_path / "shards") == sorted(captions)


def test_a_word_that_no_picture_has_is_an_error(command, tmp_path):
    printed = run(command("--words", "unicorn"), FAILED)
    assert "gave a record of 'unicorn'" in printed and "no class word in the caption" in printed
    assert "error: no picture gave a record. Look at the captions in the table" in printed
    assert {row["caption"] for row in rows(tmp_path / "out")} >= {make_scene(3, 1).caption}


@pytest.mark.parametrize("shards", [(), ("--shards", "3")], ids=["files", "shards"])
def test_a_killed_run_is_finished_by_the_same_command(command, whole, tmp_path, shards):
    log = tmp_path / "out" / "annotation_0.csv"
    for after in (4, 17):
        process = subprocess.Popen(
            command(*shards, "--batch", "1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
        )
        while process.poll() is None and (not log.is_file() or len(log.read_bytes().splitlines()) < after):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    printed = run(command(*shards, "--batch", "1"))
    assert int(printed.partition(" of them left")[0].rpartition(" ")[2]) < COUNT
    assert names(tmp_path / "out") == whole
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_full_disk_loses_nothing(command, whole, tmp_path):
    shards = ("--shards", "100", "--batch", "2")
    printed = run(command(*shards), FAILED, limit=150_000)
    assert "What is written stays; the same command goes on." in printed
    kept = names(tmp_path / "out")
    assert kept
    run(command(*shards))
    assert set(kept) < set(whole) and names(tmp_path / "out") == whole


def test_two_processes_share_the_work(command, whole, tmp_path):
    launch = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0")
    printed = run(command("--shards", "5", launch=launch))
    assert "for process 1 of 2" in printed and "for process 2 of 2" in printed
    assert names(tmp_path / "out") == whole
    assert len({row["picture"] for row in rows(tmp_path / "out")}) == len(rows(tmp_path / "out")) == COUNT + 3


@pytest.mark.parametrize("rank", [0, 1])
def test_an_output_that_is_in_use_is_left_alone(command, tmp_path, rank):
    give_back = lock(tmp_path / "out" / f".annotate-{rank}.lock")
    printed = run(command(), FAILED)
    give_back()
    assert f"error: another process is writing to {tmp_path / 'out'}" in printed


def test_an_output_that_cannot_be_written_is_named(command, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert f"error: {tmp_path / 'out'}: this folder cannot be written (File exists)." in run(command(), FAILED)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--pictures", "{tmp}/nowhere"], r"error: pictures: {tmp}/nowhere is not a folder. Name the folder"),
        (["--pictures", "{tmp}"], r"error: pictures: {tmp} holds none (.jpg"),
        (["--models", "{tmp}/nowhere"], r"error: --models: {tmp}/nowhere is not a folder. It takes a detector"),
        (["--words", " , "], r"error: words: there are none, and only Florence-2 takes them from captions"),
        (["--batch", "0"], r"0 is not 1 or more"),
    ],
)
def test_bad_input_is_named(command, tmp_path, options, problem):
    filled = [option.format(tmp=tmp_path) for option in options]
    printed = run(command(*filled), 2 if "--batch" in options else FAILED)
    assert problem.replace("{tmp}", str(tmp_path)) in printed and "Traceback" not in printed
