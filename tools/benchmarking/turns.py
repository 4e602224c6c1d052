"""Settings measured in turns, so that drift of the machine meets all alike, and their table."""

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Setting:
    """One row of a table: what is measured, giving seconds and peak memory in MB, and what came of it."""

    name: str
    measure: Callable[[], tuple[float, float]]
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)


def timed(name: str, work: Callable[[], object]) -> Setting:
    """A setting that measures a piece of work, up to the end of the device's."""

    def measure() -> tuple[float, float]:
        import torch

        with PeakMemory() as memory, torch.inference_mode():
            wait_for_device()
            start = time.perf_counter()
            work()
            wait_for_device()
            seconds = time.perf_counter() - start
        return seconds, memory.peak

    return Setting(name, measure)


def wait_for_device() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def take_turns(settings: list[Setting], rounds: int) -> list[dict]:
    """Every setting once to warm up, then in turns -> rows of a table."""
    for setting in settings:
        setting.measure()
    for number in range(rounds):
        for setting in settings:
            seconds, megabytes = setting.measure()
            setting.seconds.append(seconds)
            setting.megabytes.append(megabytes)
        line = ", ".join(f"{setting.name} {setting.seconds[-1]:.3f} s" for setting in settings)
        print(f"round {number + 1} of {rounds}: {line}", flush=True)
    return table(settings)


def table(settings: list[Setting]) -> list[dict]:
    """Rows: median seconds, ratio to the first row by round (median, lowest, highest) and of the fastest rounds, and of
    peak memory."""
    plain = settings[0]
    rows = []
    for setting in settings:
        ratios = [ours / theirs for ours, theirs in zip(setting.seconds, plain.seconds, strict=True)]
        memory = statistics.median(
            ours / theirs for ours, theirs in zip(setting.megabytes, plain.megabytes, strict=True)
        )
        rows.append(
            {
                "name": setting.name,
                "seconds": statistics.median(setting.seconds),
                "quietest": min(setting.seconds) / min(plain.seconds),
                "ratio": (statistics.median(ratios), min(ratios), max(ratios)),
                "memory": memory,
            }
        )
    return rows


class PeakMemory:
    """Peak device memory in MB; on a CPU the process's resident set, sampled every 5 ms."""

    def __enter__(self) -> "PeakMemory":
        import torch

        self.peak, self.cuda, self.running = 0.0, torch.cuda.is_available(), True
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()
        return self

    def watch(self) -> None:
        import psutil

        process = psutil.Process()
        while self.running:
            self.peak = max(self.peak, process.memory_info().rss / 2**20)
            time.sleep(0.005)

    def __exit__(self, *_) -> None:
        import torch

        self.running = False
        if self.cuda:
            self.peak = torch.cuda.max_memory_allocated() / 2**20
        else:
            self.thread.join()


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"
