"""A disk that is full, a folder that cannot be written or read: said at the input, with nothing left behind."""

import ctypes
import os
from contextlib import contextmanager

import folder_paths
import numpy as np
import pytest
import torch
from mm_diff_pack.nodes.checkpoints import MMDiffLoader, MMDiffSaveCheckpoint
from mm_diff_pack.nodes.subjects import MMDiffLoadSubject, MMDiffSaveSubject
from mm_diff_pack.nodes.write_record import MMDiffWriteRecord

from helpers import random_subject
from mmdiff_model.training.logs import CsvLog
from mmdiff_model.training.state import State, StateError

resource = pytest.importorskip("resource", reason="limits and rights are Unix's")
LIMIT = 2048
CAPABILITY_VERSION, OVERRIDES = 0x20080522, 0b110  # Linux's: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in ("mmdiff", "mmdiff_subjects"):
        (tmp_path / name).mkdir()
        types = {".safetensors", ".bin"}
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], types))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    return tmp_path


@contextmanager
def full_disk():
    """No file grows beyond LIMIT bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def without_rights(*paths):
    """Root, too, has to obey the modes of files then."""
    modes = [(path, path.stat().st_mode) for path in paths]
    for path in paths:
        path.chmod(0o500 if path.is_dir() else 0)
    library, header, found = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(CAPABILITY_VERSION), (ctypes.c_uint32 * 6)()
    library.capget(header, found)
    effective = found[0]
    found[0] &= ~OVERRIDES
    library.capset(header, found)
    try:
        yield
    finally:
        found[0] = effective
        library.capset(header, found)
        for path, mode in modes:
            path.chmod(mode)


def everything(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def record(**changes):
    photo = torch.rand(1, 64, 64, 3)
    inputs = {"image": photo, "mask": torch.ones(1, 64, 64), "words": "dog", "caption": "a dog", "name": "data"}
    return MMDiffWriteRecord.execute(**inputs | changes)


@pytest.mark.parametrize("closed", [full_disk, without_rights])
def test_every_node_that_writes_names_its_input(folders, checkpoint, closed):
    anna = random_subject(checkpoint, 1)
    MMDiffSaveSubject.execute(subject=anna, filename="anna", overwrite=False)
    record()
    before = everything(folders)
    places = [folders / "mmdiff", folders / "mmdiff_subjects", folders / "input" / "mmdiff_data" / "data"]
    writes = {
        "filename: 'anna.safetensors'": lambda: MMDiffSaveSubject.execute(
            subject=anna, filename="anna", overwrite=True
        ),
        "filename: 'new.safetensors'": lambda: MMDiffSaveSubject.execute(subject=anna, filename="new", overwrite=False),
        "filename: 'whole.safetensors'": lambda: MMDiffSaveCheckpoint.execute(mmdiff=checkpoint, filename="whole"),
        "name: 'record_": record,
    }
    for start, write in writes.items():
        with closed(*(places if closed is without_rights else ())), pytest.raises(OSError, match=f"^{start}") as error:
            write()
        assert "could not be written to" in str(error.value) and "Free some disk space or make" in str(error.value)
    left = [name for name in everything(folders) if name not in before]
    assert not [name for name in left if not name.endswith(".jpg")]  # a picture without its annotation is no record
    assert not list(folders.rglob("*.partial"))
    MMDiffLoadSubject.execute(file="anna.safetensors")


def test_a_training_says_which_file_is_full(tmp_path):
    """And the state of before stays, to go on with."""
    state = State(tmp_path / "state.pt", {"seed": "1"})
    state.save({"step": 3})
    log = CsvLog(tmp_path, 0)
    with full_disk():
        with pytest.raises(
            OSError, match=r"^.*state.pt: could not be written .*the last save is still there. Free some"
        ):
            state.save({"weights": torch.rand(10_000)})
        with pytest.raises(OSError, match=r"^.*log.csv: could not be written .*Free some disk space"):
            for step in range(1, 2 + LIMIT):
                log.write(step, {"loss": 0.5})
    kept = {}
    state.load(torch.device("cpu"), kept.update)
    assert kept["step"] == 3 and "weights" not in kept
    whole = CsvLog(tmp_path, LIMIT).losses()
    assert [step for step, _ in whole] == list(range(1, len(whole) + 1)) and len(whole) > 10
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("cut", [0, 3, 10, 15, 18])
def test_a_log_that_a_kill_has_cut_goes_on(tmp_path, cut):
    """From its whole rows; without a whole head it begins anew."""
    log = CsvLog(tmp_path, 0)
    for step in (1, 2):
        log.write(step, {"loss": 0.5})
    os.truncate(log.path, cut)
    log = CsvLog(tmp_path, 1)
    log.write(2, {"loss": 0.25})
    assert log.losses() == [(1, 0.5), (2, 0.25)][cut < 17 :]
    assert log.path.read_text().splitlines()[0] == "step,loss"


@pytest.mark.parametrize("damage", ["empty", "cut", "other", "foreign"])
def test_a_damaged_state_is_refused_by_name(tmp_path, damage):
    state = State(tmp_path / "state.pt", {"seed": "1"})
    state.save({"weights": torch.rand(1000)})
    content = state.path.read_bytes()
    state.path.write_bytes({"empty": b"", "cut": content[:2000], "other": b"text"}.get(damage, content))
    if damage == "foreign":
        torch.save([np.zeros(3).tolist()], state.path)
    with pytest.raises(StateError, match="state.pt: it is damaged, or of another version .*Choose another output"):
        state.load(torch.device("cpu"), lambda saved: None)


def test_files_that_cannot_be_read_are_not_said_to_be_damaged(folders, checkpoint):
    MMDiffSaveSubject.execute(subject=random_subject(checkpoint, 1), filename="anna", overwrite=False)
    MMDiffSaveCheckpoint.execute(mmdiff=checkpoint, filename="whole")
    files = folders / "mmdiff_subjects" / "anna.safetensors", folders / "mmdiff" / "whole.safetensors"
    with without_rights(*files):
        with pytest.raises(
            ValueError, match="^file: 'anna.safetensors' cannot be read .Permission denied.. Give the ri"
        ):
            MMDiffLoadSubject.execute(file="anna.safetensors")
        with pytest.raises(ValueError, match="^checkpoint: 'whole.safetensors' cannot be read .Permission denied"):
            MMDiffLoader.execute(checkpoint="whole.safetensors", text_encoder_2_lora=False)
