"""Bad input posted to a live server: the message names the input and the remedy, and the server keeps painting.

After failed and personalised runs the plain model paints bit for bit what it painted before.
"""

import copy
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from live import LiveServer, Prompt, PromptError
from pictures import pixels
from tiny_prompt import with_tiny_models, without_mmdiff
from workflow_api import to_api

pytest_plugins = ["live_fixtures"]
pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parent.parent
SIZE, STEPS = 64, 2
NAN = float("nan")


@dataclass(frozen=True)
class Graph:
    """A prompt to be spoilt: the single portrait, by the kinds of its nodes."""

    prompt: Prompt

    def id(self, kind: str) -> str:
        return next(key for key, node in self.prompt.items() if node["class_type"] == kind)

    def set(self, kind: str, **inputs: Any) -> None:
        self.prompt[self.id(kind)]["inputs"] |= {name.replace("__", "."): value for name, value in inputs.items()}

    def drop(self, kind: str, name: str) -> None:
        del self.prompt[self.id(kind)]["inputs"][name]

    def add(self, node_id: str, kind: str, **inputs: Any) -> list[Any]:
        self.prompt[node_id] = {"class_type": kind, "inputs": {key.replace("__", "."): inputs[key] for key in inputs}}
        return [node_id, 0]

    def link(self, kind: str, output: int = 0) -> list[Any]:
        return [self.id(kind), output]


@pytest.fixture(scope="module")
def portrait(server, object_info, photos) -> Prompt:
    workflow = json.loads((ROOT / "workflows" / "MM-Diff SDXL, one person.json").read_text())
    return with_tiny_models(to_api(workflow, object_info), photos, SIZE, STEPS)


@pytest.fixture
def graph(portrait) -> Graph:
    return Graph(copy.deepcopy(portrait))


@pytest.fixture(scope="module")
def bad_files(server, photos, tmp_path_factory) -> None:
    """Damaged and foreign files in the server's models and input folders."""
    checkpoints = server.models / "mmdiff"
    official = {file.name: file.read_bytes() for file in (checkpoints / "tiny").iterdir()}
    lora = official["unet_adapter_weights.bin"]
    write_folder(checkpoints / "incomplete", {**official, "custom_weights.bin": None})
    write_folder(checkpoints / "truncated", {**official, "unet_adapter_weights.bin": lora[: len(lora) // 2]})
    write_folder(checkpoints / "not_tensors", {**official, "custom_weights.bin": pickle.dumps(Path("/"))})
    save_file({"lora_unet_down.weight": torch.zeros(1)}, checkpoints / "foreign.safetensors")

    subjects = server.models / "mmdiff_subjects"
    subjects.mkdir(exist_ok=True)
    (subjects / "truncated.safetensors").write_bytes(b"\0" * 20)
    header = json.dumps({"format": "mmdiff_subject", "format_version": 99})
    save_file({"cls": torch.zeros(1)}, subjects / "newer.safetensors", {"mmdiff_subject": header})

    latent = {"latent_tensor": torch.full((1, 4, 8, 8), float("nan")), "latent_format_version_0": torch.tensor([])}
    save_file(latent, server.folder / "input" / "nan.latent")
    wall = tmp_path_factory.mktemp("no_face") / "wall.png"
    Image.new("RGB", (320, 240), "navy").save(wall)
    server.upload(wall)


def write_folder(folder: Path, files: dict[str, bytes | None]) -> None:
    folder.mkdir()
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)


def checkpoint_is(name: str) -> Callable[[Graph], None]:
    return lambda graph: graph.set("MMDiffLoader", checkpoint=name)


def prompt_is(text: str) -> Callable[[Graph], None]:
    return lambda graph: graph.set("MMDiffApply", positive=text)


def subject_file_is(name: str) -> Callable[[Graph], None]:
    return lambda graph: graph.set(
        "MMDiffApply", subjects__subject_1=graph.add("loaded", "MMDiffLoadSubject", file=name)
    )


def photo_without_a_face(graph: Graph) -> None:
    graph.set("LoadImage", image="wall.png")


def one_photo_of_two_without_a_face(graph: Graph) -> None:
    graph.add("wall", "LoadImage", image="wall.png")
    batch = graph.add("batch", "BatchImagesNode", images__image0=graph.link("LoadImage"), images__image1=["wall", 0])
    graph.set("MMDiffEncodeSubject", images=batch)


def nan_photo(graph: Graph) -> None:
    latent = graph.add("nan", "LoadLatent", latent="nan.latent")
    graph.set("MMDiffEncodeSubject", images=graph.add("decoded", "VAEDecode", samples=latent, vae=["tiny", 2]))


def no_face_analysis(graph: Graph) -> None:
    graph.drop("MMDiffEncodeSubject", "face_analysis")


def fewer_faces(graph: Graph) -> None:
    graph.set("MMDiffEncodeSubject", face="left to right", face_index=9)


def empty_photo_mask(graph: Graph) -> None:
    graph.set("MMDiffEncodeSubject", masks=graph.add("mask", "SolidMask", value=0.0, width=64, height=64))


def no_subject(graph: Graph) -> None:
    graph.drop("MMDiffApply", "subjects.subject_1")


def start_after_end(graph: Graph) -> None:
    graph.set("MMDiffApply", start_percent=0.8, end_percent=0.2)


def region(graph: Graph, node_id: str, **inputs: Any) -> list[Any]:
    defaults = {"strength": 1.0, "name": "", "start_percent": 0.0, "end_percent": 1.0}
    return graph.add(node_id, "MMDiffSubjectRegion", subject=graph.link("MMDiffEncodeSubject"), **defaults | inputs)


def one_name_for_two(graph: Graph) -> None:
    names = {f"subjects__subject_{i}": region(graph, f"region_{i}", name="anna") for i in (1, 2)}
    graph.set("MMDiffApply", positive="a man<|subj|> and a woman<|subj|>", **names)


def two_masks_for_one(graph: Graph) -> None:
    mask = graph.add("mask", "SolidMask", value=1.0, width=64, height=64)
    masks = graph.add("masks", "BatchMasksNode", masks__mask0=mask, masks__mask1=mask)
    graph.set("MMDiffApply", subjects__subject_1=region(graph, "region", mask=masks))


def applied_twice(graph: Graph) -> None:
    again = copy.deepcopy(graph.prompt[graph.id("MMDiffApply")])
    again["inputs"]["model"] = graph.link("MMDiffApply")
    graph.prompt["again"] = again
    graph.set("KSampler", model=["again", 0])


def preview_without_routing(graph: Graph) -> None:
    model, images = graph.link("MMDiffApply"), graph.link("VAEDecode")
    graph.add("preview", "MMDiffRoutingPreview", model=model, images=images, opacity=0.6)


def save_outside_the_folder(graph: Graph) -> None:
    subject = graph.link("MMDiffEncodeSubject")
    graph.add("save", "MMDiffSaveSubject", subject=subject, filename="../../escaped", overwrite=True)


def linked_prompt(graph: Graph) -> None:
    graph.set("MMDiffApply", positive=graph.add("words", "PrimitiveString", value="a man"))


def switched_off_without_a_trigger(graph: Graph) -> None:
    graph.set("MMDiffApply", positive="a man", start_percent=0.8, end_percent=0.2, enabled=False)


def number_as_name(graph: Graph) -> None:
    graph.set("MMDiffApply", subjects__subject_1=region(graph, "region", name="1"))


def strength_of_nan(graph: Graph) -> None:
    graph.set("MMDiffApply", subjects__subject_1=region(graph, "region", strength=float("nan")))


def evaluation_of_nothing(graph: Graph) -> None:
    inputs = {"prompt": "", "clip_model": "none", "dino_model": "none", "filename_prefix": "x"}
    graph.add("scores", "MMDiffEvaluate", images=graph.link("VAEDecode"), **inputs)


def training(graph: Graph, **changes: Any) -> None:
    inputs = {"data": "people", "name": "x", "steps": 1, "batch_size": 1, "accumulation": 1, "learning_rate": 1e-4}
    inputs |= {"size": 64, "lora_rank": 1, "constraint_weight": 0.1, "gradient_checkpointing": True, "seed": 0}
    models = {name: ["tiny", slot] for slot, name in enumerate(("model", "clip", "vae", "clip_vision"))}
    graph.add("train", "MMDiffTrain", **models, **{**inputs, "variant": "subject", **changes})


def weights_that_are_no_numbers(graph: Graph) -> None:
    subject = graph.link("MMDiffEncodeSubject")
    mixed = graph.add("mix", "MMDiffMixSubjects", subjects__subject_1=subject, mode="weighted mean", weights="a lot")
    graph.set("MMDiffApply", subjects__subject_1=mixed)


# what is done to the prompt, the node that complains, the input it names, what its message says
BAD_INPUT = {
    "checkpoint that is gone": (checkpoint_is("gone"), "MMDiffLoader", "checkpoint", "gone"),
    "checkpoint without a file": (
        checkpoint_is("incomplete"),
        "MMDiffLoader",
        "checkpoint",
        "lacks custom_weights.bin",
    ),
    "truncated checkpoint": (checkpoint_is("truncated"), "MMDiffLoader", "checkpoint", "truncated"),
    "pickled object": (checkpoint_is("not_tensors"), "MMDiffLoader", "checkpoint", "was not opened"),
    "foreign checkpoint": (checkpoint_is("foreign.safetensors"), "MMDiffLoader", "checkpoint", "not an MM-Diff"),
    "no face": (photo_without_a_face, "MMDiffEncodeSubject", "images", "no face found in photo 1 of 1"),
    "no face in photo 2": (one_photo_of_two_without_a_face, "MMDiffEncodeSubject", "images", "photo 2 of 2"),
    "NaN photo": (nan_photo, "MMDiffEncodeSubject", "images", "photo 1 holds NaN"),
    "fewer faces": (fewer_faces, "MMDiffEncodeSubject", "face_index", "photo 1 of 1"),
    "no face analysis": (no_face_analysis, "MMDiffEncodeSubject", "face_analysis", "Connect Load Face Analysis"),
    "empty photo mask": (empty_photo_mask, "MMDiffEncodeSubject", "masks", "is empty. Paint the subject"),
    "no trigger": (prompt_is("a man"), "MMDiffApply", "positive", 'no trigger in "a man". Put <|subj|>'),
    "trigger without a word": (prompt_is("<|subj|> a man"), "MMDiffApply", "positive", "no word before it"),
    "more triggers": (prompt_is("a man<|subj|>, a dog<|subj|>"), "MMDiffApply", "positive", "(1 connected)"),
    "unknown name": (prompt_is("a man<|subj:leo|>"), "MMDiffApply", "positive", "<|subj:leo|> names no connected"),
    "no subject": (no_subject, "MMDiffApply", "subject_1", "Required input is missing"),
    "start after end": (start_after_end, "MMDiffApply", "start_percent", "Set it at or below end_percent"),
    "one name for two": (one_name_for_two, "MMDiffApply", "subjects.subject_2", "'anna' is used twice"),
    "two masks for one": (two_masks_for_one, "MMDiffSubjectRegion", "mask", "a batch of 2 masks for one subject"),
    "applied twice": (applied_twice, "MMDiffApply", "model", "Connect all subjects to one"),
    "truncated subject": (subject_file_is("truncated.safetensors"), "MMDiffLoadSubject", "file", "Save the subject"),
    "newer subject": (subject_file_is("newer.safetensors"), "MMDiffLoadSubject", "file", "Update the pack"),
    "save elsewhere": (save_outside_the_folder, "MMDiffSaveSubject", "filename", "not a plain file name"),
    "weights": (weights_that_are_no_numbers, "MMDiffMixSubjects", "weights", "such as: 1, 0.5"),
    "linked without a trigger": (linked_prompt, "MMDiffApply", "positive", 'no trigger in "a man". Put <|subj|>'),
    "half an emoji": (prompt_is("a man \ud83d"), "MMDiffApply", "positive", 'no trigger in "a man ?"'),
    "half an emoji in words": (prompt_is("a man<|subj|> \ud83d"), "MMDiffApply", "positive", "cannot read the prompt"),
    "mistyped trigger": (prompt_is("a man<|subj|>, a dog<|Subj|>"), "MMDiffApply", "positive", "is mistyped, after"),
    "number out of range": (prompt_is("a man<|subj:2|>"), "MMDiffApply", "positive", "(known: 1 to 1)"),
    "trigger after a comma": (prompt_is("a man, <|subj|>"), "MMDiffApply", "positive", "a punctuation mark"),
    "percent above one": (
        lambda graph: graph.set("MMDiffApply", end_percent=7),
        "MMDiffApply",
        "end_percent",
        "0 to 1",
    ),
    "percent of NaN": (
        lambda graph: graph.set("MMDiffApply", start_percent=NAN),
        "MMDiffApply",
        "start_percent",
        "nan",
    ),
    "scale of NaN": (lambda graph: graph.set("MMDiffApply", fuse_scale=NAN), "MMDiffApply", "fuse_scale", "nan"),
    "strength of NaN": (strength_of_nan, "MMDiffSubjectRegion", "strength", "nan"),
    "number as a name": (number_as_name, "MMDiffSubjectRegion", "name", "Give it letters"),
    "evaluation of nothing": (evaluation_of_nothing, "MMDiffEvaluate", "clip_model", "nothing to measure"),
    "training without data": (lambda graph: training(graph, data=" "), "MMDiffTrain", "data", "it is empty"),
    "training elsewhere": (lambda graph: training(graph, name="../x"), "MMDiffTrain", "name", "not a plain folder"),
    "training of faces": (lambda graph: training(graph, variant="portrait"), "MMDiffTrain", "face_analysis", "Connect"),
}
KNOWN_BEFORE_ANYTHING_LOADS = [
    *["no trigger", "trigger without a word", "more triggers", "start after end", "save elsewhere", "weights"],
    *["half an emoji", "mistyped trigger", "number out of range", "trigger after a comma", "percent above one"],
    *["percent of NaN", "number as a name", "evaluation of nothing", "training without data", "training elsewhere"],
    "training of faces",
]


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named_with_a_remedy_and_the_server_goes_on(case, graph, portrait, server):
    spoil, node_type, name, says = BAD_INPUT[case]
    spoil(graph)
    with pytest.raises(PromptError) as caught:
        server.run(graph.prompt)
    assert caught.value.node_type == node_type
    assert re.search(rf"(^|: ){re.escape(name)}(:|$)", caught.value.message)
    assert says in caught.value.message
    assert "." not in caught.value.kind
    assert case not in KNOWN_BEFORE_ANYTHING_LOADS or caught.value.kind == "custom_validation_failed"
    assert server.images(server.run(portrait))


def test_preview_without_routing_shows_the_pictures_and_why_there_is_no_map(graph, server):
    preview_without_routing(graph)
    outputs = server.run(graph.prompt)
    assert server.images(outputs, "preview")
    assert outputs["preview"]["text"] == [
        "No map: routing is 'off', so every subject may be anywhere. Choose 'masks' or 'auto' in Apply MM-Diff."
    ]


def test_a_report_waits_for_the_pictures_and_tells_how_they_came(graph, server):
    report = graph.add(
        "report",
        "MMDiffReport",
        model=graph.link("MMDiffApply"),
        positive=graph.link("MMDiffApply", 1),
        images=graph.link("VAEDecode"),
        face_analysis=graph.link("MMDiffFaceAnalysisLoader"),
        clip_vision=graph.link("MMDiffTinyModels", 3),
    )
    graph.add("text", "PreviewAny", source=report)
    outputs = server.run(graph.prompt)
    [text] = outputs["text"]["text"]
    assert server.images(outputs, "report")
    assert f"steps 1 to {STEPS} of {STEPS}" in text and "attn2 replace: MM-Diff" in text
    assert "likeness, face" in text and "likeness, whole picture" in text and "Notes" not in text


def test_what_is_switched_off_is_not_checked(graph, server):
    switched_off_without_a_trigger(graph)
    assert server.images(server.run(graph.prompt))


class Planted:
    """Opens a file for writing where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_code_is_not_run(graph, server, tmp_path):
    folder = server.models / "mmdiff" / "planted"
    folder.mkdir()
    for file in (server.models / "mmdiff" / "tiny").iterdir():
        (folder / file.name).write_bytes(pickle.dumps(Planted(tmp_path / "was_run")))
    checkpoint_is("planted")(graph)
    with pytest.raises(PromptError):
        server.run(graph.prompt)
    assert not (tmp_path / "was_run").exists()


def test_no_file_was_written_outside_its_folder(graph, server):
    save_outside_the_folder(graph)
    with pytest.raises(PromptError):
        server.run(graph.prompt)
    assert not list(server.folder.rglob("*escaped*"))


def test_plain_sampling_is_bit_exact_after_personalised_and_failed_runs(graph, portrait, server):
    before = plain_pictures(server, portrait, repeats=1)
    server.run(portrait)
    applied_twice(graph)
    with pytest.raises(PromptError):
        server.run(graph.prompt)
    after = plain_pictures(server, portrait, repeats=2)
    assert np.array_equal(after, before)


def plain_pictures(server: LiveServer, portrait: Prompt, repeats: int) -> list[np.ndarray]:
    """Pixels of the base model's pictures, sampled anew: latents repeated once, so many times, are new to the cache."""
    graph = Graph(without_mmdiff(portrait))
    latents = graph.link("EmptyLatentImage")
    for repeat in range(repeats):
        latents = graph.add(f"repeat_{repeat}", "RepeatLatentBatch", samples=latents, amount=1)
    graph.set("KSampler", latent_image=latents)
    ran = set()
    outputs = server.run(graph.prompt, on_progress=lambda node_id, *_: ran.add(node_id))
    assert graph.id("KSampler") in ran and "tiny" not in ran
    return [pixels(picture) for picture in server.images(outputs)]
