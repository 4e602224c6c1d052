"""Tries inputs that nobody planned for: python tools/fuzz.py [--cases N] [--seed N] [--kinds names,masks] [--json FILE]

Checkpoint and subject files, prompts, masks, names and workflows are made by hypothesis. Each must be right or refused
by an error of ours; no crash, no hang, no memory beyond a bound, no file outside its folder. With --atheris, where it
is installed, one kind is tried for ever with cases that reach new code. The last line has the figures; the exit status
is 1 if anything was found. Needs ComfyUI in COMFYUI_PATH, .host/ComfyUI or around the repository, and hypothesis.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib.util
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

KINDS = ("checkpoints", "subjects", "prompts", "masks", "names", "workflows")
SHARES = {"checkpoints": 0.2, "subjects": 0.2, "prompts": 0.1, "masks": 0.2, "names": 0.2, "workflows": 0.1}
HANG_SECONDS, MEMORY_BOUND = 60, 1 << 30
BUILD_SECONDS = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--json", type=Path, help="also writes the figures and all findings here")
    parser.add_argument("--atheris", action="store_true", help="the first of --kinds, guided by coverage, for ever")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options)
    with tempfile.TemporaryDirectory(prefix="mmdiff_fuzz_") as folder:
        return watch(options, Path(folder))


def watch(options: argparse.Namespace, folder: Path) -> int:
    """Runs the cases in a process of their own, which may crash, and tells what came of it."""
    started = time.monotonic()
    status = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--work", str(folder)]).returncode
    file = folder / "figures.json"
    figures = json.loads(file.read_text()) if file.is_file() else {"cases": 0}
    if status not in (0, 1) or not file.is_file():
        figures["crash"] = f"exit status {status}"
    figures |= {"seed": options.seed, "seconds": round(time.monotonic() - started, 1)}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    for finding in figures.get("findings", []):
        print(f"{finding['kind']}: {finding['outcome']} x {finding['count']}: {finding['what']}\n  {finding['case']}")
    counts = figures.get("outcomes", {})
    end = f"CRASH: {figures['crash']}" if "crash" in figures else "no crash"
    print(
        f"fuzz: {figures['cases']} cases in {figures['seconds']} s: {counts.get('right', 0)} right, "
        f"{counts.get('refused', 0)} refused, {counts.get('wrong', 0)} wrong, {counts.get('raw', 0)} raw exceptions, "
        f"{figures.get('outside', 0)} files outside, slowest {figures.get('slowest', 0)} s, "
        f"memory +{figures.get('memory_mb', 0)} MB, {end}"
    )
    return int(status != 0 or "crash" in figures)


def work(options: argparse.Namespace) -> int:
    """Builds what the kinds need and tries their cases; 1 where something was found."""
    faulthandler.dump_traceback_later(BUILD_SECONDS, exit=True)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    prepare()
    from fuzzing.checkpoints import Checkpoints
    from fuzzing.inputs import Masks, Names, Prompts, Workflows
    from fuzzing.subjects import Subjects

    classes = (Checkpoints, Subjects, Prompts, Masks, Names, Workflows)
    targets = {name: kind for name, kind in zip(KINDS, classes, strict=True) if name in options.kinds.split(",")}
    sandbox = options.work / "sandbox"
    sandbox.mkdir()
    made = {name: kind(sandbox) for name, kind in targets.items()}
    if options.atheris:
        return guided(made[options.kinds.split(",")[0]])
    tally = Tally(options.work)
    whole = sum(SHARES[name] for name in made)
    for name, target in made.items():
        tally.run(name, target, max(1, round(options.cases * SHARES[name] / whole)), options.seed)
    figures = tally.figures()
    (options.work / "figures.json").write_text(json.dumps(figures))
    faulthandler.cancel_dump_traceback_later()
    return int(bool(figures["findings"]) or figures["outside"] > 0 or figures["memory_mb"] > MEMORY_BOUND >> 20)


def prepare() -> None:
    """ComfyUI, and the pack under a name as ComfyUI gives it one."""
    from mmdiff_model.host import use_comfyui

    use_comfyui()
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    where = {"submodule_search_locations": [str(ROOT)]}
    spec = importlib.util.spec_from_file_location("mm_diff_pack", ROOT / "__init__.py", **where)
    module = sys.modules["mm_diff_pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in [name for name in sys.modules if name.startswith("mm_diff_pack.mmdiff_model")]:
        sys.modules[name.removeprefix("mm_diff_pack.")] = sys.modules[name]


class Tally:
    """Counts how cases end, and keeps the shortest case of each finding."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.outcomes: Counter[str] = Counter()
        self.by_kind: dict[str, Counter[str]] = {}
        self.findings: dict[tuple[str, str, str], dict] = {}
        self.slowest = 0.0
        self.outside: set[str] = set()
        self.memory = peak_memory()

    def run(self, kind: str, target, cases: int, seed: int) -> None:
        from hypothesis import HealthCheck, Phase, given, settings
        from hypothesis import seed as seeded

        self.by_kind[kind] = Counter()
        left = cases
        while left > 0:  # hypothesis ends early where it has seen every case
            before = sum(self.by_kind[kind].values())
            limits = settings(
                max_examples=left, deadline=None, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            test = seeded(seed + left)(limits(given(target.cases)(lambda case: self.one(kind, target, case))))
            test()
            done = sum(self.by_kind[kind].values()) - before
            left -= done
        if outside := {file.name for file in self.folder.iterdir()} - {"sandbox"}:
            self.outside |= outside

    def one(self, kind: str, target, case) -> None:
        from fuzzing.outcome import judge

        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        started = time.perf_counter()
        try:
            outcome, what = target(case), ""
        except Exception as error:
            outcome, what = judge(error)
        self.slowest = max(self.slowest, time.perf_counter() - started)
        self.outcomes[outcome] += 1
        self.by_kind[kind][outcome] += 1
        if what:
            finding = self.findings.setdefault((kind, outcome, what.partition(": ")[0]), {"count": 0, "case": None})
            finding["count"] += 1
            shown = ascii(case)[:1000]
            if finding["case"] is None or len(shown) < len(finding["case"]):
                finding |= {"kind": kind, "outcome": outcome, "what": what, "case": shown}

    def figures(self) -> dict:
        return {
            "cases": sum(self.outcomes.values()),
            "outcomes": dict(self.outcomes),
            "by_kind": {kind: dict(counts) for kind, counts in self.by_kind.items()},
            "findings": sorted(self.findings.values(), key=lambda finding: -finding["count"]),
            "slowest": round(self.slowest, 2),
            "memory_mb": (peak_memory() - self.memory) >> 20,
            "outside": len(self.outside),
        }


def peak_memory() -> int:
    """Bytes that this process has held at most; 0 where the system does not say."""
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return 0


def guided(target) -> int:
    """One kind with atheris: it ends at the first finding, or with Ctrl-C."""
    import atheris
    from hypothesis import given, settings

    from fuzzing.outcome import REFUSED, judge

    @settings(database=None, deadline=None)
    @given(target.cases)
    def test(case) -> None:
        try:
            target(case)
        except Exception as error:
            if judge(error)[0] != REFUSED:
                raise

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-seed={random.randrange(1 << 31)}"], test.hypothesis.fuzz_one_input)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
