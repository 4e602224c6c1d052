"""What a training tells while it runs: log.csv, a progress bar, and TensorBoard's files."""

import csv
from pathlib import Path

from tqdm import tqdm

from ..files import naming, write_whole
from .loop import Figures

CSV_FILE, BOARD_FOLDER = "log.csv", "tensorboard"
SMOOTHING = 0.98


class CsvLog:
    """`folder`/log.csv, a row for each step; what an earlier run logged beyond `step` is dropped."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / CSV_FILE
        keep_steps(self.path, step)

    def write(self, step: int, figures: Figures) -> None:
        """Adds a step. Raises OSError."""
        fresh = not self.path.is_file()
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", newline="") as file:
                rows = csv.writer(file)
                if fresh:
                    rows.writerow(["step", *figures])
                rows.writerow([step, *figures.values()])

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every row."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


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


def keep_steps(path: Path, last: int) -> None:
    """Drops the rows of a log.csv beyond step `last`, and one that a kill or a full disk has cut off."""
    if not path.is_file():
        return
    head, *rows = path.read_text().splitlines(keepends=True) or [""]
    kept = [row for row in rows if row.endswith("\n") and int(row.partition(",")[0]) <= last]
    if head.endswith("\n"):
        write_whole(path, lambda partial: partial.write_text(head + "".join(kept)))
    else:
        path.unlink()
