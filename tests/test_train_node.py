"""Train MM-Diff in a live server: a data folder becomes a checkpoint; cancelling keeps it; the base stays as it was."""

import shutil
import sys
import threading
import time

import numpy as np
import pytest
import torch
from comfy.model_sampling import V_PREDICTION
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from PIL import Image

from conftest import ROOT
from live import Prompt, PromptError
from pictures import pixels

sys.path.append(str(ROOT))

from mmdiff_model.training.copies import copy_base  # noqa: E402
from mmdiff_model.training.objective import check_sampling  # noqa: E402
from mmdiff_model.training.plot import draw_losses  # noqa: E402
from mmdiff_model.training.session import BaseModels  # noqa: E402
from small_world.drawn.records import write_records  # noqa: E402
from small_world.drawn.scenes import make_scene  # noqa: E402

pytest_plugins = ["live_fixtures"]

WIDGETS = {
    "data": "records",
    "variant": "subject",
    "name": "run",
    "steps": 3,
    "batch_size": 1,
    "accumulation": 2,
    "learning_rate": 1e-3,
    "size": 64,
    "lora_rank": 4,
    "constraint_weight": 0.1,
    "gradient_checkpointing": True,
    "seed": 0,
}
SAMPLER = {"steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": 1}


@pytest.fixture(scope="module")
def records(server) -> None:
    write_records(server.folder / "input" / "records", [make_scene(6, number) for number in range(4)])


def graph(**widgets) -> Prompt:
    """Trains, encodes a subject with what was trained, and paints with the base and with the subject."""
    models = {name: ["tiny", slot] for slot, name in enumerate(("model", "clip", "vae", "clip_vision"))}
    face = {"face": "largest", "face_index": 1, "cls_from": "first photo (as released)"}
    encode = {"mmdiff": ["train", 0], "clip_vision": models["clip_vision"], "images": ["character", 0], **face}
    times = {"fuse_scale": 1.0, "start_percent": 0.0, "end_percent": 1.0, "start_merge_step": 0}
    how = {
        "routing": "off",
        "negative_fusion": "as released",
        "positive": "a cat<|subj|> waving",
        "negative": "",
        **times,
    }
    latent = {"latent_image": ["latent", 0], **SAMPLER}
    nodes = {
        "tiny": ("MMDiffTinyModels", {"seed": 20}),
        "train": ("MMDiffTrain", {**models, **WIDGETS, **widgets}),
        "plot": ("SaveImage", {"images": ["train", 1], "filename_prefix": "plot"}),
        "character": ("MMDiffDemoCharacter", {"word": "cat", "seed": 1}),
        "subject": ("MMDiffEncodeSubject", encode),
        "apply": (
            "MMDiffApply",
            {
                "model": models["model"],
                "clip": models["clip"],
                "mmdiff": ["train", 0],
                **how,
                "subjects.subject_1": ["subject", 0],
            },
        ),
        "text": ("CLIPTextEncode", {"clip": models["clip"], "text": "a cat waving"}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "plain": ("KSampler", {"model": models["model"], "positive": ["text", 0], "negative": ["text", 0], **latent}),
        "ours": ("KSampler", {"model": ["apply", 0], "positive": ["apply", 1], "negative": ["apply", 2], **latent}),
    }
    for name in ("plain", "ours"):
        nodes[f"{name} picture"] = "VAEDecode", {"samples": [name, 0], "vae": models["vae"]}
        nodes[f"{name} saved"] = "SaveImage", {"images": [f"{name} picture", 0], "filename_prefix": name}
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def picture(server, outputs, name: str) -> np.ndarray:
    return pixels(server.images(outputs, name)[0])


@pytest.mark.live
def test_a_folder_becomes_a_checkpoint_that_paints(server, records):
    before = server.run({key: node for key, node in graph().items() if key in PLAIN})
    outputs = server.run(graph())
    folder = server.folder / "output" / "mmdiff_training" / "run"
    assert {path.name for path in folder.iterdir()} == {"state.pt", "mmdiff.safetensors", "log.csv", "training.lock"}
    assert picture(server, outputs, "plot").shape[:2] == (432, 768)
    assert np.array_equal(picture(server, before, "plain saved"), picture(server, outputs, "plain saved"))
    assert not np.array_equal(picture(server, outputs, "plain saved"), picture(server, outputs, "ours saved"))
    again = server.run(graph(steps=2))
    assert again["train"]["text"] == [
        "This training was finished at step 3. Raise steps to go on with it, or choose another name."
    ]


PLAIN = ("tiny", "text", "latent", "plain", "plain picture", "plain saved")


@pytest.mark.live
def test_cancelling_keeps_what_was_trained_and_running_again_goes_on(server, records):
    prompt = graph(name="cancelled", steps=400)
    log = server.folder / "output" / "mmdiff_training" / "cancelled" / "log.csv"
    reached: list[int] = []

    def cancel() -> None:
        while not log.is_file() or len(log.read_text().splitlines()) < 4:
            time.sleep(0.05)
        server.post("/interrupt", {})

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(PromptError, match="cancelled"):
        server.run(prompt)
    canceller.join()
    reached.append(len(log.read_text().splitlines()) - 1)
    state = torch.load(log.with_name("state.pt"), weights_only=True)
    assert 3 <= state["step"] == reached[0] < 400 and log.with_name("mmdiff.safetensors").is_file()
    server.run(graph(name="cancelled", steps=reached[0] + 2))
    assert [line.partition(",")[0] for line in log.read_text().splitlines()[1:]] == [
        str(step) for step in range(1, reached[0] + 3)
    ]


def anew(server, widgets: dict) -> dict:
    """What a training shows that ComfyUI has no cached answer of."""
    server.post("/free", {"free_memory": True})
    time.sleep(1)
    return server.run(graph(**widgets))


@pytest.mark.live
def test_a_name_goes_with_its_data(server, records):
    """Other data, or records that were added, are neither trained on top nor answered with the old checkpoint."""
    widgets = {"name": "dogs", "steps": 1, "data": "dogs"}
    scenes = [make_scene(6, number) for number in range(10, 16)]
    data, folder = server.folder / "input", server.folder / "output" / "mmdiff_training" / "dogs"
    for name, chosen in {"dogs": scenes[:3], "cats": scenes[3:]}.items():
        write_records(data / name, chosen)
    server.run(graph(**widgets))
    (folder / "log.csv").unlink()
    assert anew(server, widgets)["train"]["text"][0].startswith("This training was finished at step 1.")
    shutil.rmtree(folder)
    assert anew(server, widgets)["train"]["text"] == ["Trained 1 step."]
    painted = next((data / "dogs").rglob("*.npy"))
    whole, numbers = painted.read_bytes(), np.load(painted)
    numbers[:8] = 1
    np.save(painted, numbers)
    with pytest.raises(PromptError, match=r"another set of maps than this one .* choose another name"):
        server.run(graph(**widgets))
    painted.write_bytes(whole)
    write_records(data / "dogs", scenes[:4])
    refused = r"was started with another data set than this one \(3 records .*, now {} records .* choose another name"
    with pytest.raises(PromptError, match=refused.format(4)):
        server.run(graph(**widgets))
    with pytest.raises(PromptError, match=refused.format(3)):
        server.run(graph(**{**widgets, "data": "cats"}))


MISTAKES = {
    "no data": ({"data": " "}, "data: it is empty"),
    "missing folder": ({"data": "nowhere"}, "nowhere does not exist"),
    "name": ({"name": "../x"}, "name: '../x' is not a plain folder name"),
    "portrait": ({"variant": "portrait"}, "face_analysis: a portrait training reads faces"),
    "other shape": ({"lora_rank": 5, "name": "run"}, "was started with other settings \\(shape was"),
}


@pytest.mark.live
@pytest.mark.parametrize(("widgets", "message"), MISTAKES.values(), ids=MISTAKES)
def test_bad_input_is_named(server, records, widgets, message):
    with pytest.raises(PromptError, match=message):
        server.run(graph(**widgets))


def test_a_copy_has_the_patches_in_its_weights_and_the_base_stays(tiny):
    key = "diffusion_model.out.2.weight"
    patched = tiny.model.clone()
    patched.add_patches({key: (torch.ones_like(tiny.model.model.state_dict()[key]),)}, 0.5)
    before = tiny.model.model.state_dict()[key].clone()
    with torch.inference_mode(False):
        base = copy_base(patched, tiny.clip, tiny.vae, tiny.clip_vision, torch.float32)
    assert torch.equal(tiny.model.model.state_dict()[key], before)
    torch.testing.assert_close(base.model.model.state_dict()[key], before + 0.5)
    assert base.clip.cond_stage_model is not tiny.clip.cond_stage_model
    assert base.clip_vision.model is not tiny.clip_vision.model


def test_a_copy_in_half_precision_keeps_the_noise_levels(tiny):
    with torch.inference_mode(False):
        base = copy_base(tiny.model, tiny.clip, tiny.vae, tiny.clip_vision, torch.bfloat16)
    sampling = base.model.model.model_sampling
    assert sampling.sigmas.dtype == torch.float32
    assert torch.equal(sampling.timestep(sampling.sigmas), torch.arange(1000))
    assert {weight.dtype for weight in base.model.model.diffusion_model.parameters()} == {torch.bfloat16}


def test_another_sampling_of_the_graph_is_trained_or_refused(tiny):
    def copied(kind: str) -> BaseModels:
        (patched,) = ModelSamplingDiscrete().patch(tiny.model, kind, False)
        with torch.inference_mode(False):
            return copy_base(patched, tiny.clip, tiny.vae, tiny.clip_vision, torch.float32)

    base = copied("v_prediction")
    check_sampling(base.model.model.model_sampling)
    assert isinstance(base.model.model.model_sampling, V_PREDICTION)
    assert not isinstance(tiny.model.model.model_sampling, V_PREDICTION)
    assert "V_PREDICTION" in base.sampling() and base.sampling() != copied("eps").sampling()
    for kind in ("lcm", "img_to_img_flow"):
        with pytest.raises(ValueError, match="model: it samples in another way than SDXL"):
            check_sampling(copied(kind).model.model.model_sampling)


def test_a_plot_shows_the_losses():
    falling = [(step, 1 / step) for step in range(1, 101)]
    plot = np.array(draw_losses(falling, 100))
    blue = (plot[:, :, 2] > 150) & (plot[:, :, 0] < 100)
    columns = np.nonzero(blue.any(axis=0))[0]
    heights = [np.nonzero(blue[:, column])[0].mean() for column in (columns[5], columns[-5])]
    assert heights[0] < heights[1], "a falling loss goes down the picture"
    assert draw_losses([(1, 0.5)], 10).size == draw_losses([], 10).size == Image.fromarray(plot).size
