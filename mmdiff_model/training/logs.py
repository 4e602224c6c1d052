"""What a training tells while it runs: a progress bar, log.csv, and TensorBoard's files."""

import csv
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .loop import Figures
from .state import write_whole

CSV_FILE = "log.csv"
SMOOTHING = 0.98


class Log:
    """The log of a run from `step` to `steps`; what an earlier run logged beyond `step` is dropped."""

    def __init__(self, folder: Path, step: int, steps: int):
        self.path = folder / CSV_FILE
        keep_steps(self.path, step)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1)
        self.loss: float | None = None

    def write(self, step: int, figures: Figures) -> None:
        """Adds a step. Raises OSError."""
        fresh = not self.path.is_file()
        with self.path.open("a", newline="") as file:
            rows = csv.writer(file)
            if fresh:
                rows.writerow(["step", *figures])
            rows.writerow([step, *figures.values()])
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
    """Drops the rows of a log.csv beyond step `last`."""
    if not path.is_file():
        return
    head, *rows = path.read_text().splitlines(keepends=True)
    kept = [row for row in rows if int(row.partition(",")[0]) <= last]
    write_whole(path, lambda partial: partial.write_text(head + "".join(kept)))
