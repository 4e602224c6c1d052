"""Trains MM-Diff: python tools/train.py --config FILE [--estimate]

On several GPUs or machines: accelerate launch tools/train.py --config FILE. Run the same command again to go on after a
kill. Needs accelerate and tensorboard beside ComfyUI's own packages, and ComfyUI in COMFYUI_PATH, in .host/ComfyUI, or
around the repository.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdiff_model.host import use_comfyui  # noqa: E402
from mmdiff_model.training.processes import Accelerated, signals  # noqa: E402

SAMPLES_FOLDER = "samples"


def main() -> int:
    """The exit status: 0 for a finished training, 1 for an error, 3 where a signal has stopped it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="a YAML file such as configs/sdxl_subject.yaml")
    parser.add_argument("--estimate", action="store_true", help="only say how much memory the training takes")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui()
    try:
        return estimate(options.config) if options.estimate else train(options.config)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
        return 1


def estimate(path: Path) -> int:
    from mmdiff_model.training.config import load_config
    from mmdiff_model.training.memory import report

    print(report(load_config(path)))
    return 0


def train(path: Path) -> int:
    """Trains what a configuration says. Raises ConfigError, StateError, LossError, OSError."""
    from mmdiff_model.training.config import load_config

    config = load_config(path)
    processes = Accelerated()

    from mmdiff_model.training.logs import Log
    from mmdiff_model.training.records import Records
    from mmdiff_model.training.samples import paint
    from mmdiff_model.training.session import Session

    session = Session(config, load_models(config), Records.open(config.data.places), processes)
    log = Log(config.output, session.loop.step, config.plan.steps) if processes.rank == 0 else None

    def sample(step: int) -> None:
        session.export()
        with session.paused():
            picture = paint(config.samples, session.base, session.checkpoint, config.data.size)
        path = config.output / SAMPLES_FOLDER / f"step_{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)

    def after(step: int, figures: dict[str, float]) -> None:
        if log is not None:
            log.write(step, figures)
            if config.samples and step % config.samples.every == 0:
                sample(step)

    if log is not None and config.samples:
        sample(session.loop.step)  # what is wrong with them must not show up hours later
    with signals() as stop:
        finished = session.run(stop, after)
    if log is not None:
        log.close()
        for reason, count in session.examples.rejected.most_common():
            print(f"skipped records: {count} x {reason}")
        print(f"{'trained' if finished else 'stopped at'} step {session.loop.step}: {session.checkpoint}")
    return 0 if finished else 3


def load_models(config):
    """The base that a configuration names, in the precision of its plan. Raises FileNotFoundError, ConfigError."""
    import comfy.clip_vision
    import comfy.sd
    import comfy.utils

    from mmdiff_model.faces import FaceFinder, load_face_analysis
    from mmdiff_model.training.config import ConfigError, SmallWorld
    from mmdiff_model.training.session import BaseModels

    base = config.base
    for key, path in vars(base).items():
        if path is not None and not path.exists():
            raise FileNotFoundError(f"base.{key}: {path} does not exist")
    if isinstance(base, SmallWorld):
        from small_world.phases.phase import load_base

        return load_base(base.small_world)
    dtype = {"dtype": config.plan.dtype}
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
        str(base.checkpoint), model_options=dtype, te_model_options=dtype
    )
    if base.vae:
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(base.vae)))
    clip_vision = comfy.clip_vision.load(str(base.clip_vision))
    for key, found in {"checkpoint": model and clip, "vae": vae, "clip_vision": clip_vision}.items():
        if found is None:
            raise ConfigError(f"base.{key}: {getattr(base, key) or base.checkpoint} holds no such model")
    find_face = None
    if base.face_analysis:
        root, name = base.face_analysis.parent.parent, base.face_analysis.name
        find_face = FaceFinder(load_face_analysis(root, name))
    return BaseModels(model, clip, vae, clip_vision, find_face)


if __name__ == "__main__":
    sys.exit(main())
