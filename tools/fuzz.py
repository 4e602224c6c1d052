"""Tries inputs that nobody planned for: python tools/fuzz.py [--cases N] [--seed N] [--kinds names,masks] [--json FILE]

Checkpoint and subject files, prompts, masks, names and workflows are made by hypothesis. Each must be right or refused
by an error of ours; no crash, no hang, no memory beyond a bound, no file outside its folder. With --atheris, where it
is installed, one kind is tried for ever with cases that reach new code. The last line has the figures; the exit status
is 1 if anything was found; --progress tells how far it is. Needs ComfyUI in COMFYUI_PATH, .host/ComfyUI or around the
repository, and hypothesis.
"""

from __future__ import annotations

import argparse
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

KINDS = ("checkpoints", "subjects", "prompts", "masks", "names", "workflows")
SHARES = {"checkpoints": 0.1, "subjects": 0.3, "prompts": 0.1, "masks": 0.15, "names": 0.2, "workflows": 0.15}
BUILD_SECONDS, MEMORY_BOUND = 300, 1 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--json", type=Path, help="also writes the figures and all findings here")
    parser.add_argument("--progress", action="store_true", help="prints a line after every thousand cases")
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
    from fuzzing.masks import Masks
    from fuzzing.names import Names
    from fuzzing.prompts import Prompts
    from fuzzing.subjects import Subjects
    from fuzzing.tally import Tally
    from fuzzing.workflows import Workflows

    classes = (Checkpoints, Subjects, Prompts, Masks, Names, Workflows)
    targets = {name: kind for name, kind in zip(KINDS, classes, strict=True) if name in options.kinds.split(",")}
    sandbox = options.work / "sandbox"
    sandbox.mkdir()
    made = {name: kind(sandbox) for name, kind in targets.items()}
    if options.atheris:
        return guided(made[options.kinds.split(",")[0]])
    whole = sum(SHARES[name] for name in made)
    counts = {name: max(1, round(options.cases * SHARES[name] / whole)) for name in made}
    tally, told = Tally(options.work), time.monotonic()
    for name, count in counts.items():
        for done in tally.run(name, made[name], count, options.seed):
            (options.work / "figures.json").write_text(json.dumps(tally.figures()))
            if options.progress:
                seconds = time.monotonic() - told
                print(
                    f"{name}: {done} of {count} cases, {seconds:.0f} s, {tally.findings or 'nothing found'}", flush=True
                )
    figures = tally.figures()
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
