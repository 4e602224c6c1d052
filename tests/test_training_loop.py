"""The training loop: what it computes, what it keeps through a kill, and how it ends when something goes wrong."""

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

from mmdiff_model.training.loop import Loop, LossError, Micro
from mmdiff_model.training.plan import Plan
from mmdiff_model.training.processes import Processes
from mmdiff_model.training.state import State, StateError

ALONE = Processes(torch.device("cpu"))
PLAN = Plan(steps=8, rate=0.05, warmup=2, ema_steps=4)
SECONDS = 1000.0


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


def make_loop(folder: Path, plan: Plan = PLAN, seed: int = 0, identity: dict | None = None) -> Loop:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
    return Loop(plan, module, State(folder / "state.pt", identity or {}), ALONE)


def fit(loop: Loop, size: int = 4):
    """Micro-batches of a regression, a function of their number alone."""

    def compute(number: int) -> Micro:
        examples = [torch.Generator().manual_seed(n) for n in range(number * size, (number + 1) * size)]
        x = torch.stack([torch.randn(3, generator=random) for random in examples])
        with loop.plan.autocast(ALONE.device):
            loss = (loop.module(x) - x[:, :2].sin()).square().mean()
        return Micro(loss, {"error": loss.detach().sqrt()}, [f"example {number}"])

    return compute


def everything(loop: Loop) -> dict[str, torch.Tensor]:
    moments = {f"{n}.{k}": v for n, s in loop.optimizer.state_dict()["state"].items() for k, v in s.items()}
    averages = {f"average.{name}": tensor for name, tensor in loop.average.items()}
    return {**loop.module.state_dict(), **averages, **moments}


def assert_same(one: Loop, other: Loop) -> None:
    assert one.step == other.step
    for name, tensor in everything(one).items():
        assert torch.equal(tensor, everything(other)[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, precision):
    plan = Plan(steps=8, rate=0.05, warmup=2, accumulation=2, precision=precision)
    whole = make_loop(tmp_path / "whole", plan)
    assert whole.run(fit(whole), SECONDS)
    first = make_loop(tmp_path / "parts", plan)
    assert not first.run(fit(first), SECONDS, stop=lambda: first.step == 2)
    second = make_loop(tmp_path / "parts", plan, seed=1)
    assert second.step == 3
    assert second.run(fit(second), SECONDS)
    assert_same(whole, second)
    assert whole.scaler.state_dict() == second.scaler.state_dict()


def test_accumulation_is_a_larger_batch(tmp_path):
    large = make_loop(tmp_path / "large")
    large.run(fit(large, size=8), SECONDS)
    small = make_loop(tmp_path / "small", Plan(steps=8, rate=0.05, warmup=2, ema_steps=4, accumulation=2))
    small.run(fit(small, size=4), SECONDS)
    for name, weight in large.module.state_dict().items():
        torch.testing.assert_close(weight, small.module.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_it_learns_and_tells_every_step(tmp_path):
    loop = make_loop(tmp_path, Plan(steps=150, rate=0.02, warmup=2))
    told = []
    loop.run(fit(loop), SECONDS, after=lambda step, figures: told.append((step, figures)))
    assert [step for step, _ in told] == list(range(1, 151))
    losses = [figures["loss"] for _, figures in told]
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    assert told[0][1]["error"] == pytest.approx(told[0][1]["loss"] ** 0.5)


def test_the_average_follows_the_weights(tmp_path):
    loop = make_loop(tmp_path, Plan(steps=1, rate=0.1, warmup=0, ema_steps=100))
    before = {name: weight.detach().clone() for name, weight in loop.weights.items()}
    loop.update(fit(loop))
    for name, weight in loop.weights.items():
        expected = before[name] + (weight - before[name]) * 10 / 11  # one step in: 1 - 1 / (1 + 10)
        torch.testing.assert_close(loop.average[name], expected)


def test_rates_rise_then_fall():
    plan = Plan(steps=100, rate=1.0, warmup=10)
    assert [plan.rate_at(step) for step in (0, 9, 10)] == [0.1, 1.0, 1.0]
    assert plan.rate_at(55) == pytest.approx(0.51)
    assert plan.rate_at(100) == pytest.approx(0.02)


def test_what_is_frozen_stays(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    loop = Loop(PLAN, module, State(tmp_path / "state.pt", {}), ALONE)
    loop.run(lambda number: Micro(module(torch.ones(1, 3)).square().mean()), SECONDS)
    assert torch.equal(module[0].weight, before) and set(loop.average) == {"1.weight", "1.bias"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_state(tmp_path, bad, precision):
    loop = make_loop(tmp_path, Plan(steps=8, rate=0.05, precision=precision))
    compute = fit(loop)

    def compute_until_five(number: int) -> Micro:
        micro = compute(number)
        return micro if number < 5 else Micro(micro.loss * bad, micro.figures, micro.names)

    with pytest.raises(LossError, match=r"step 5: the loss is (nan|inf), batch: example 5\..*state\.pt holds the last"):
        loop.run(compute_until_five, save_seconds=0.0)
    resumed = make_loop(tmp_path, seed=1)
    assert resumed.step == 5
    assert all(weight.isfinite().all() for weight in resumed.module.state_dict().values())


def test_an_overflowing_gradient_is_passed_over_in_half_precision(tmp_path):
    loop = make_loop(tmp_path, Plan(steps=3, rate=0.05, precision="fp16"))
    before = {name: weight.clone() for name, weight in loop.module.state_dict().items()}
    scale, compute = loop.scaler.get_scale(), fit(loop)
    loop.update(lambda number: Micro(compute(number).loss * 3e38 / scale * 100, {}, ["large"]))
    assert all(torch.equal(weight, before[name]) for name, weight in loop.module.state_dict().items())
    assert loop.scaler.get_scale() < scale


def test_a_full_disk_keeps_what_was_saved(tmp_path):
    """The system refuses to write beyond 1 KB of any file."""
    resource = pytest.importorskip("resource", reason="limits of a process are Unix's")
    loop = make_loop(tmp_path)
    loop.update(fit(loop))
    loop.save()
    loop.update(fit(loop))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    with pytest.raises(OSError, match=r"state\.pt: could not be written .*last save is still there\. Free some disk"):
        loop.save()
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    assert make_loop(tmp_path).step == 1
    loop.save()
    assert make_loop(tmp_path).step == 2


IDENTITY = {"data": "4 records aa", "maps": "dd", "vae": "bb", "shape": "large", "seed": "1"}
OTHERS = {
    "settings": ({"shape": "small", "seed": "2"}, "other settings (shape was large, now small; seed was 1, now 2)"),
    "data": ({"data": "5 records cc"}, "another data set than this one (4 records aa, now 5 records cc)"),
    "maps": ({"maps": "ee"}, "another set of maps than this one (dd, now ee)"),
    "both": (
        {"vae": "cc", "seed": "2"},
        "another VAE than this one (bb, now cc) and other settings (seed was 1, now 2)",
    ),
}


@pytest.mark.parametrize(("changes", "message"), OTHERS.values(), ids=OTHERS)
def test_a_state_of_another_training_is_refused(tmp_path, changes, message):
    make_loop(tmp_path, identity=IDENTITY).save()
    with pytest.raises(StateError) as caught:
        make_loop(tmp_path, identity={**IDENTITY, **changes})
    assert str(caught.value) == (
        f"{tmp_path / 'state.pt'}: the training in this folder was started with {message}. Put back what was there to "
        "go on with it, or choose another output."
    )


def test_a_state_that_notes_no_maps_is_gone_on_with(tmp_path):
    """An older version's."""
    make_loop(tmp_path, identity={key: value for key, value in IDENTITY.items() if key != "maps"}).save()
    assert make_loop(tmp_path, identity=IDENTITY).step == 0


@pytest.mark.parametrize(("first", "second"), [("fp32", "fp16"), ("fp16", "fp32"), ("fp16", "bf16")])
def test_a_training_goes_on_in_another_precision(tmp_path, first, second):
    """What LossError advises."""
    make_loop(tmp_path, Plan(steps=4, precision=first)).save()
    loop = make_loop(tmp_path, Plan(steps=4, precision=second), seed=1)
    assert loop.run(fit(loop), SECONDS)
    assert all(weight.isfinite().all() for weight in loop.module.state_dict().values())


def test_going_on_uses_the_decay_of_now(tmp_path):
    make_loop(tmp_path, Plan(steps=4, rate=0.05, decay=0.5)).save()
    loop = make_loop(tmp_path, Plan(steps=4, rate=0.05, warmup=0, decay=0.0))
    before = loop.module[0].weight.clone()
    loop.update(lambda number: Micro(loop.module(torch.zeros(1, 3)).sum() * 0))
    assert torch.equal(loop.module[0].weight, before)


def test_a_state_of_another_version_or_a_damaged_one_is_refused(tmp_path):
    make_loop(tmp_path).save()
    path, whole = tmp_path / "state.pt", (tmp_path / "state.pt").read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(StateError, match=r"state\.pt: it is damaged, or of another version .*Choose another output"):
        make_loop(tmp_path)
    path.write_bytes(whole)
    for change in ({"optimizer": None}, {"module": {"0.weight": torch.ones(2, 2)}}):
        saved = {**torch.load(path, weights_only=True), **change}
        torch.save({key: value for key, value in saved.items() if value is not None}, tmp_path / "other.pt")
        with pytest.raises(StateError, match="of another version"):
            State(tmp_path / "other.pt", {}).load(ALONE.device, make_loop(tmp_path / "new").restore)


def test_a_missing_folder_is_made_and_an_unwritable_one_is_named(tmp_path):
    make_loop(tmp_path / "new" / "folder").save()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        make_loop(tmp_path / "file").save()
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST, None)
    assert str(tmp_path / "file") in str(caught.value)
