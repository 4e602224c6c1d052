"""tools/train.py as a command: the small world's shapes, annotated records on disk, kills, and several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from conftest import ROOT
from mmdiff_model.checkpoint import load_checkpoint
from mmdiff_model.training.copies import copy_base
from mmdiff_model.training.processes import Processes
from mmdiff_model.training.records import Records
from mmdiff_model.training.session import Session

sys.path.append(str(ROOT))

from small_world.drawn import scenes  # noqa: E402
from small_world.drawn.records import write_records  # noqa: E402
from small_world.phases.phase import load_base  # noqa: E402

RECORDS = 12
FINISHED, FAILED, STOPPED = 0, 1, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Annotated records of the small world, one of them without its map."""
    folder = tmp_path_factory.mktemp("data")
    write_records(folder, [scenes.make_scene(5, number) for number in range(RECORDS)])
    next(folder.rglob("*3.npy")).unlink()
    return folder


@pytest.fixture
def configure(small_weights, data, tmp_path):
    """Writes a configuration of few steps, with sections changed."""

    def write(name: str = "run", **changes) -> Path:
        values = {
            "output": str(tmp_path / name),
            "variant": "subject",
            "base": {"small_world": str(small_weights)},
            "data": {"places": [str(data)], "size": 128, "cache": True},
            "plan": {"steps": 4, "rate": 1.0e-3, "warmup": 1, "batch_size": 2, "ema_steps": 2},
            "shape": {"depth": 1, "token_hidden": 32, "lora_rank": 2, "text_lora_rank": 2, "vision_layers": 1},
        }
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def command(config: Path, launch: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launch, str(ROOT / "tools" / "train.py"), "--config", str(config)]


def train(config: Path, launch: tuple[str, ...] = (), expected: int = FINISHED) -> str:
    """Runs a training -> what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command(config, launch), capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def state_of(config: Path) -> dict:
    output = Path(yaml.safe_load(config.read_text())["output"])
    return torch.load(output / "state.pt", weights_only=True)


def differences(one: dict, other: dict) -> dict[str, float]:
    return {name: float((one[name] - other[name]).abs().max()) for name in one}


def test_a_training_from_the_command_line(configure, data, tmp_path):
    reference = next(data.rglob("*1.jpg"))
    samples = {"prompt": "a cat<|subj|> in a park", "references": [str(reference)], "every": 2, "steps": 2}
    printed = train(configure(samples=samples, gradient_checkpointing=True, plan={"batch_size": 4}))
    output = tmp_path / "run"
    assert f"trained step 4: {output / 'mmdiff.safetensors'}" in printed
    assert "skipped records: 1 x " in printed
    assert load_checkpoint(output / "mmdiff.safetensors").variant == "subject"
    assert [line.partition(",")[0] for line in (output / "log.csv").read_text().split()] == ["step", *"1234"]
    assert list((output / "tensorboard").glob("events*"))
    for step in (0, 2, 4):
        assert Image.open(output / "samples" / f"step_{step:06d}.png").size == (128, 128)
    assert "trained step 4" in train(tmp_path / "run.yaml")  # nothing left to do


def test_a_killed_training_ends_as_an_uninterrupted_one(configure):
    plan = {"steps": 12}
    whole, parts = (
        configure("whole", plan=plan, checkpoint_seconds=1),
        configure("parts", plan=plan, checkpoint_seconds=1),
    )
    train(whole)
    for kill in (signal.SIGKILL, signal.SIGTERM):
        log = Path(yaml.safe_load(parts.read_text())["output"]) / "log.csv"
        rows = len(log.read_text().split()) if log.is_file() else 0
        process = subprocess.Popen(command(parts), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not log.is_file() or len(log.read_text().split()) < rows + 3):
            time.sleep(0.05)
        process.send_signal(kill)
        assert process.wait(timeout=120) == (-signal.SIGKILL if kill == signal.SIGKILL else STOPPED)
    train(parts)
    one, other = state_of(whole), state_of(parts)
    assert one["step"] == other["step"] == 12
    for name, tensor in one["module"].items():
        assert torch.equal(tensor, other["module"][name]), name
    for name, tensor in one["average"].items():
        assert torch.equal(tensor, other["average"][name]), name


def test_two_processes_are_one_with_twice_the_batch(configure):
    trained = {"small_world": str(ROOT / "small_world" / "weights")}  # untrained ones hardly have a gradient
    drops = {"text": 0.2, "image": 0.4, "both": 0.2}  # so that processes reach different parameters
    alone = configure("alone", base=trained, drops=drops, plan={"batch_size": 4, "steps": 1, "accumulation": 2})
    pair = configure("pair", base=trained, drops=drops, plan={"batch_size": 2, "steps": 1, "accumulation": 2})
    train(alone)
    train(pair, ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    assert state_of(pair)["identity"] == state_of(alone)["identity"]
    one, other = (state_of(config)["optimizer"]["state"] for config in (alone, pair))
    assert one.keys() == other.keys()
    largest = max(float(moment["exp_avg"].abs().max()) for moment in one.values())
    for number, moment in one.items():  # a tenth of the gradient, after one step
        torch.testing.assert_close(moment["exp_avg"], other[number]["exp_avg"], atol=1e-5 * largest, rtol=1e-3)


BAD = {
    "misspelt key": ({"plan": {"stpes": 1}}, "plan.stpes: no such key; did you mean plan.steps?"),
    "no base": ({"base": {"small_world": "nowhere"}}, "base.small_world: nowhere does not exist"),
    "no reference": (
        {"samples": {"prompt": "a cat<|subj|>", "references": ["nowhere.jpg"]}},
        "No such file or directory: 'nowhere.jpg'",
    ),
    "no trigger": ({"samples": {"prompt": "a cat", "references": ["{reference}"]}}, "there is no trigger"),
    "no data": ({"data": {"places": ["nowhere"]}}, "nowhere"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_input_ends_with_one_line(configure, data, changes, message):
    config = configure(**changes)
    config.write_text(config.read_text().replace("{reference}", str(next(data.rglob("*1.jpg")))))
    printed = train(config, expected=FAILED)
    assert message in printed and "Traceback" not in printed


def test_a_training_begun_in_a_graph_goes_on_as_a_command(configure, small_weights, data, tmp_path):
    """In another precision too: the base is the same when it was loaded for another."""
    from mm_diff_pack.nodes.train import settings_of

    sizes = {"steps": 1, "batch_size": 2, "accumulation": 1, "lora_rank": 2, "size": 128}
    others = {"learning_rate": 1e-3, "constraint_weight": 0.1, "gradient_checkpointing": False, "seed": 0}
    device = torch.device("cpu")
    settings = settings_of(tmp_path / "run", device, variant="subject", **sizes, **others)
    loaded = load_base(small_weights)
    with torch.inference_mode(False):
        base = copy_base(loaded.model, loaded.clip, loaded.vae, loaded.clip_vision, torch.bfloat16)
        session = Session(settings, base, Records.open([data]), Processes(device))
        session.loop.save()
        session.close()
    shape = {"depth": 4, "token_hidden": 1024, "lora_rank": 2, "text_lora_rank": 16, "vision_layers": 2}
    assert "trained step 1" in train(configure(shape=shape, plan={"steps": 1}))


def test_a_loss_that_becomes_nan_names_step_and_batch(configure):
    printed = train(configure(plan={"rate": 1.0e30, "clip_norm": 1.0e30}), expected=FAILED)
    assert "error: step " in printed and "batch: " in printed and "nothing has been saved yet" in printed


def test_the_memory_of_another_base_is_not_estimated(configure):
    done = subprocess.run([*command(configure()), "--estimate"], capture_output=True, text=True)
    assert done.returncode == FAILED and "error: base: --estimate counts the memory of SDXL" in done.stderr


def test_the_memory_estimate():
    done = subprocess.run(
        [*command(ROOT / "configs" / "sdxl_subject.yaml"), "--estimate"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "as configured" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("as configured")]
    shipped = (ROOT / "configs" / "sdxl_subject.yaml").read_text()
    assert " ".join(rows[0].split()) in " ".join(shipped.split())
