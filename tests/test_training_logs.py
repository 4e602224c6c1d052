"""log.csv: a row for each step under the columns of all of them, and what is done with one that a person has edited."""

import csv
from pathlib import Path

import pytest

from mmdiff_model.training.logs import CsvLog


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_going_on_with_other_figures_keeps_every_value_under_its_name(tmp_path):
    log = CsvLog(tmp_path, 0)
    log.write(1, {"loss": 0.5, "text_map": 0.25, "rate": 1e-3})
    CsvLog(tmp_path, 1).write(2, {"loss": 0.4, "rate": 2e-3})
    CsvLog(tmp_path, 2).write(3, {"loss": 0.3, "error": 0.1, "rate": 3e-3})
    assert rows_of(tmp_path) == [
        {"step": "1", "loss": "0.5", "text_map": "0.25", "rate": "0.001", "error": ""},
        {"step": "2", "loss": "0.4", "text_map": "", "rate": "0.002", "error": ""},
        {"step": "3", "loss": "0.3", "text_map": "", "rate": "0.003", "error": "0.1"},
    ]
    assert CsvLog(tmp_path, 2).losses() == [(1, 0.5), (2, 0.4)]


def test_a_log_that_was_deleted_begins_anew(tmp_path):
    log = CsvLog(tmp_path, 0)
    log.write(1, {"loss": 0.5})
    log.path.unlink()
    log.write(2, {"loss": 0.4})
    assert log.losses() == [(2, 0.4)]


@pytest.mark.parametrize("end", ["2,0.", "2", ""])
def test_a_row_that_was_cut_off_is_dropped(tmp_path, end):
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n" + end)
    CsvLog(tmp_path, 5).write(6, {"loss": 0.25})
    assert [row["step"] for row in rows_of(tmp_path)] == ["1", "6"]


def test_a_heading_that_was_cut_off_begins_anew(tmp_path):
    (tmp_path / "log.csv").write_text("step,lo")
    CsvLog(tmp_path, 0).write(1, {"loss": 0.25})
    assert rows_of(tmp_path) == [{"step": "1", "loss": "0.25"}]


EDITS = {
    "a word for a step": "step,loss\n1,0.5\ntwo,0.5\n",
    "a word for a loss": "step,loss\n1,0.5\n2,low\n",
    "a value too many": "step,loss\n1,0.5\n2,0.5,7\n",
    "a value too few": "step,loss\n1,0.5\n2\n",
    "other bytes": b"step,loss\n1,0.5\n\xff\xfe,0.5\n",
}


@pytest.mark.parametrize("text", EDITS.values(), ids=EDITS)
def test_an_edited_log_is_refused_with_its_line(tmp_path, text):
    (tmp_path / "log.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"log\.csv, line 3: .*Mend the line, or delete the file to begin a new log"):
        CsvLog(tmp_path, 5)


def test_a_log_of_semicolons_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text("step;loss\n1;0.5\n")
    with pytest.raises(ValueError, match=r"log\.csv, line 2"):
        CsvLog(tmp_path, 5)
