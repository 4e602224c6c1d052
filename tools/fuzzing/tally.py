"""Counts how cases end, and keeps the shortest case of each finding."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from .outcome import judge

HANG_SECONDS = 180
AT_ONCE = 1000  # hypothesis remembers every case of a run


class Tally:
    """`folder` is the sandbox's: a file beside the sandbox is outside."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.by_kind: dict[str, Counter[str]] = {}
        self.findings: dict[tuple[str, str, str], dict] = {}
        self.slowest: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, int] = {}
        self.outside: set[str] = set()

    def run(self, kind: str, target, cases: int, seed: int) -> Iterator[int]:
        """Tries so many cases of a kind; tells in between how many are done."""
        self.by_kind[kind], self.slowest[kind] = Counter(), 0.0
        forget_peak()
        started, before, done = time.monotonic(), peak_memory(), 0
        while done < cases:  # hypothesis ends early where it has seen every case
            limits = settings(
                max_examples=min(cases - done, AT_ONCE), deadline=None, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            test = seeded(seed + cases - done)(limits(given(target.cases)(lambda case: self.one(kind, target, case))))
            test()
            done = self.by_kind[kind].total()
            self.seconds[kind], self.memory[kind] = time.monotonic() - started, peak_memory() - before
            self.outside |= {file.name for file in self.folder.iterdir()} - {"sandbox", "figures.json"}
            yield done

    def one(self, kind: str, target, case) -> None:
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        started = time.perf_counter()
        try:
            outcome, what = target(case), ""
        except Exception as error:
            outcome, what = judge(error)
        self.slowest[kind] = max(self.slowest[kind], time.perf_counter() - started)
        self.by_kind[kind][outcome] += 1
        if what:
            finding = self.findings.setdefault((kind, outcome, what.partition(": ")[0]), {"count": 0, "case": None})
            finding["count"] += 1
            shown = ascii(case)[:1000]
            if finding["case"] is None or len(shown) < len(finding["case"]):
                plain = what.encode("ascii", "backslashreplace").decode()
                finding |= {"kind": kind, "outcome": outcome, "what": plain, "case": shown}

    def figures(self) -> dict:
        outcomes = sum(self.by_kind.values(), Counter())
        return {
            "cases": outcomes.total(),
            "outcomes": dict(outcomes),
            "by_kind": {kind: dict(counts) for kind, counts in self.by_kind.items()},
            "seconds_by_kind": {kind: round(seconds, 1) for kind, seconds in self.seconds.items()},
            "memory_mb_by_kind": {kind: more >> 20 for kind, more in self.memory.items()},
            "findings": sorted(self.findings.values(), key=lambda finding: -finding["count"]),
            "slowest": round(max(self.slowest.values()), 2),
            "memory_mb": max(self.memory.values()) >> 20,
            "outside": len(self.outside),
        }


def forget_peak() -> None:
    """From here on the peak is a new one; other systems than Linux keep the one that building the kinds took."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes that this process has held at most; 0 where the system does not say."""
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return 0
