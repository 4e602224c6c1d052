"""What a training tells while it runs: log.csv, a progress bar, and TensorBoard's files."""

import csv
from pathlib import Path

from tqdm import tqdm

from ..files import naming, write_whole
from .loop import Figures

CSV_FILE, BOARD_FOLDER = "log.csv", "tensorboard"
SMOOTHING = 0.98


class CsvLog:
    """`folder`/log.csv, a row for each step; what an earlier run logged beyond `step` is dropped.

    Raises ValueError where the file is no log.
    """

    def __init__(self, folder: Path, step: int):
        self.path = folder / CSV_FILE
        self.columns, rows = read_log(self.path)
        if self.path.is_file():
            self.store([row for row in rows if int(row["step"]) <= step])

    def write(self, step: int, figures: Figures) -> None:
        """Adds a step, and columns for figures that earlier ones did not have. Raises OSError."""
        row = {"step": step, **figures}
        with naming(self.path):
            if not self.path.is_file() or row.keys() - set(self.columns):
                columns, rows = read_log(self.path)
                self.columns = list(dict.fromkeys([*columns, *row]))
                self.store(rows)
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow(row)

    def store(self, rows: list[dict[str, str]]) -> None:
        """Replaces the file. Raises OSError."""

        def write(partial: Path) -> None:
            with partial.open("w", newline="") as file:
                table = csv.DictWriter(file, self.columns, restval="")
                table.writeheader()
                table.writerows(rows)

        write_whole(self.path, write)

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every row."""
        return [(int(row["step"]), float(row["loss"])) for row in read_log(self.path)[1]]


class Log:
    """log.csv, TensorBoard and a progress bar of a run from `step` to `steps`."""

    def __init__(self, folder: Path, step: int, steps: int):
        from torch.utils.tensorboard import SummaryWriter

        self.csv = CsvLog(folder, step)
        self.board = SummaryWriter(str(folder / BOARD_FOLDER), purge_step=step + 1)
        self.bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1)
        self.loss: float | None = None

    def write(self, step: int, figures: Figures) -> None:
        """Adds a step. Raises OSError."""
        self.csv.write(step, figures)
        for name, value in figures.items():
            self.board.add_scalar(name, value, step)
        loss = figures["loss"]
        self.loss = loss if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        self.bar.set_postfix(loss=f"{self.loss:.4f}")
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
        self.board.close()


def read_log(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a log.csv, without one that a kill or a full disk has cut off; none of a missing file.

    Raises ValueError with the line that tells of no step.
    """
    if not path.is_file():
        return [], []
    text = path.read_text(errors="replace")
    table = csv.DictReader(line for line in text.splitlines(keepends=True) if line.endswith("\n"))
    rows = []
    for row in table:
        try:
            int(row["step"]), float(row["loss"])
            whole = None not in row and None not in row.values()
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise ValueError(
                f"{path}, line {table.line_num}: it is no step with its figures. Mend the line, or delete the file to "
                "begin a new log."
            )
        rows.append(row)
    return list(table.fieldnames or ()), rows
