"""The shipped workflows: valid and tidy as files, and each runs from end to end in a real ComfyUI.

The demos run as they are, with the models that come with the pack; the others with tiny ones.
"""

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from live import LiveServer, Prompt
from pictures import pixels
from tiny_prompt import relink, with_tiny_models, without_mmdiff
from workflow_api import COMMENTS, to_api, widget_values

pytest_plugins = ["live_fixtures"]

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
WORKFLOWS = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
DEMOS = [name for name in WORKFLOWS if name.startswith("MM-Diff Demo")]
SDXL = [name for name in WORKFLOWS if name.startswith("MM-Diff SDXL, ")]
DEMO, EVALUATE = DEMOS[0], "MM-Diff Demo 9, evaluate"
PAINTING = [name for name in WORKFLOWS if name != EVALUATE]
FROM_PHOTOS = "MM-Diff Demo, from photos to a checkpoint"
REPORTED = "MM-Diff Demo 6, routing off and auto"
SAVED = ["MM-Diff Demo 5, save and load", "MM-Diff SDXL, save and load a person"]
ROUTED = [name for name in WORKFLOWS if "MMDiffRoutingPreview" in WORKFLOWS[name].read_text()]

TITLE_HEIGHT = 30
SCREEN, FITTED = (1860, 1000), 0.75  # a canvas of 1920 x 1080; how the front end fits a template into it
READABLE = 0.58  # below 8/14 the front end draws no text
# to which the front end lets a lower node grow when it shows its pictures and text
HEIGHT_WITH_PICTURES = {
    "MMDiffEncodeSubject": 398,
    "LoadImage": 314,
    "MMDiffEvaluate": 564,
    "MMDiffTrain": 680,
    "MMDiffWriteRecord": 364,
}
THUMBNAIL_WIDTH, THUMBNAIL_BYTES = 512, 50_000
SIZE, STEPS = 64, 4
ACTIVE = 0
USERS_OWN = {"image", "file"}  # inputs that list what the user has made or uploaded

each_workflow = pytest.mark.parametrize("name", WORKFLOWS)


def load(name: str) -> dict[str, Any]:
    return json.loads(WORKFLOWS[name].read_text())


def real_nodes(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in workflow["nodes"] if node["type"] not in COMMENTS]


def test_every_kind_of_use_has_a_workflow():
    used = {node["type"] for name in WORKFLOWS for node in load(name)["nodes"]}
    assert len(DEMOS) == 10 and len(SDXL) == 13 and len(WORKFLOWS) == len(DEMOS) + len(SDXL)
    assert used >= {"MMDiffApply", "MMDiffMixSubjects", "MMDiffSubjectRegion", "MMDiffRoutingPreview"}
    assert used >= {"MMDiffSaveSubject", "MMDiffLoadSubject", "LoraLoader", "ControlNetApplyAdvanced"}
    assert used >= {"MMDiffApplyModel", "MMDiffTextEncode", "MMDiffDemoScenes", "MMDiffWriteRecord"}
    assert used >= {"MMDiffTrain", "MMDiffEvaluate", "MMDiffReport"}


def test_the_demo_comes_first():
    assert min(WORKFLOWS, key=str.casefold) == DEMO and "two characters" in DEMO


@each_workflow
def test_links_are_consistent(name):
    workflow = load(name)
    assert workflow["version"] == 0.4
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link[1:] for link in workflow["links"]}
    assert len(nodes) == len(workflow["nodes"]) and len(links) == len(workflow["links"])
    incoming = {
        socket["link"]: (node["id"], slot, socket["type"])
        for node in nodes.values()
        for slot, socket in enumerate(node["inputs"])
        if socket["link"] is not None
    }
    outgoing = {
        link: (node["id"], slot, socket["type"])
        for node in nodes.values()
        for slot, socket in enumerate(node["outputs"])
        for link in socket["links"] or []
    }
    assert incoming.keys() == outgoing.keys() == links.keys()
    for link, (source, output, target, slot, kind) in links.items():
        assert outgoing[link] == (source, output, kind)
        assert incoming[link][:2] == (target, slot)
        assert kind in incoming[link][2].split(",")


@each_workflow
def test_nothing_overlaps_and_groups_hold_their_nodes(name):
    workflow = load(name)
    boxes = [box_of(node) for node in workflow["nodes"]]
    groups = [corners(*group["bounding"]) for group in workflow["groups"]]
    for some in (boxes, groups):
        assert not [pair for pair in itertools.combinations(some, 2) if overlap(*pair)]
    for box in boxes:
        assert not [group for group in groups if overlap(box, group) and not inside(box, group)]
    for node in workflow["nodes"]:
        assert node["size"][1] >= HEIGHT_WITH_PICTURES.get(node["type"], 0)


@each_workflow
def test_it_opens_readable_with_the_note_first_and_nothing_switched_off(name):
    nodes = load(name)["nodes"]
    boxes = [box_of(node) for node in nodes]
    width, height = (max(box[side + 2] for box in boxes) - min(box[side] for box in boxes) for side in (0, 1))
    assert FITTED * min(SCREEN[0] / width, SCREEN[1] / height) >= READABLE
    first = min(nodes, key=lambda node: node["pos"][0])
    assert first["type"] == "MarkdownNote" and first["widgets_values"][0].startswith("# ")
    assert "`" not in first["widgets_values"][0]  # Nodes 2.0 draws code in a note blue on grey
    assert {node["mode"] for node in nodes} == {ACTIVE}


@each_workflow
def test_a_photo_is_the_users_own(name):
    """A name that is not in the input folder would open red."""
    assert all(node["widgets_values"] == [] for node in load(name)["nodes"] if node["type"] == "LoadImage")


@each_workflow
def test_notes_and_loaders_say_which_files_to_get(name):
    workflow = load(name)
    note = "".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in COMMENTS)
    for node in real_nodes(workflow):
        ours = node["type"].startswith("MMDiff")
        assert node["properties"]["cnr_id"] == ("mm-diff" if ours else "comfy-core")
        if node["type"] in ("CheckpointLoaderSimple", "CLIPVisionLoader", "LoraLoader", "ControlNetLoader"):
            (model,) = node["properties"]["models"]
            assert model["name"] == node["widgets_values"][0]
            assert model["url"] in note and f"models/{model['directory']}" in note and model["name"] in note
        if node["type"] == "MMDiffLoader":
            assert f"models/mmdiff/{node['widgets_values'][0]}" in note
        if node["type"] == "MMDiffFaceAnalysisLoader":
            assert f"models/insightface/models/{node['widgets_values'][0]}" in note


@each_workflow
def test_thumbnail(name):
    path = FOLDER / f"{name}.jpg"
    assert path.stat().st_size < THUMBNAIL_BYTES
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.width <= THUMBNAIL_WIDTH


@pytest.mark.live
@each_workflow
def test_nodes_and_values_are_known_to_the_server(name, object_info):
    for node in real_nodes(load(name)):
        info = object_info[node["type"]]
        values = widget_values(node, info)
        inputs = info["input"].get("required", {}) | info["input"].get("optional", {})
        for key, value in values.items():
            assert is_valid(key, inputs[key], value, node), f"{node['type']}.{key}: {value!r}"
        assert [socket["type"] for socket in node["outputs"]] == info["output"]


@dataclass(frozen=True)
class Run:
    """A prompt that was queued twice, what its nodes showed, and the nodes that ran the second time."""

    prompt: Prompt
    outputs: dict[str, Any]
    ran_again: list[str]


@pytest.fixture(scope="module")
def run(server, object_info, photos) -> Callable[[str], Run]:
    """Runs a workflow by name, once for all tests."""

    @cache
    def run_workflow(name: str) -> Run:
        if name in DEMOS:  # in the browser they run as they are
            return queue_twice(server, quick(to_api(load(name), object_info)))
        return queue_twice(server, tiny_prompt(load(name), object_info, photos))

    return run_workflow


@pytest.mark.live
@pytest.mark.parametrize("name", PAINTING)
def test_runs_and_is_served_from_cache_when_queued_again(name, run, server):
    done = run(name)
    assert saved_pictures(server, done.prompt, done.outputs)
    assert not done.ran_again


@pytest.mark.live
@pytest.mark.parametrize("name", PAINTING)
def test_subject_changes_the_picture(name, run, server):
    done = run(name)
    personalised = saved_pictures(server, done.prompt, done.outputs)
    prompt = plain_prompt(done.prompt)
    plain = saved_pictures(server, prompt, server.run(prompt))
    assert personalised.keys() == plain.keys()
    for node_id, pictures in personalised.items():
        for ours, theirs in zip(pictures, plain[node_id], strict=True):
            assert ours.shape == theirs.shape
            assert not np.array_equal(ours, theirs)


@pytest.mark.live
def test_evaluation_scores_the_pictures_with_and_without(run, server):
    run(EVALUATE)
    files = sorted((server.folder / "output" / "mm-diff").glob("demo_scores_*.json"))[-2:]
    scores = [score for path in files for score in json.loads(path.read_text())["scores"]]
    assert [score["metric"] for score in scores] == ["CLIP-I", "CLIP-I"]
    assert scores[0]["mean"] != scores[1]["mean"]


@pytest.mark.live
def test_delay_changes_the_picture(run, server):
    done = run("MM-Diff SDXL, the person joins later")
    from_the_start, delayed = itertools.chain(*saved_pictures(server, done.prompt, done.outputs).values())
    assert not np.array_equal(from_the_start, delayed)


@pytest.mark.live
@pytest.mark.parametrize("name", ROUTED)
def test_routing_preview_shows_each_subject(name, run, server):
    done = run(name)
    (apply,) = nodes_of(done.prompt, "MMDiffApply")
    (preview,) = nodes_of(done.prompt, "MMDiffRoutingPreview")
    maps = [pixels(picture) for picture in server.images(done.outputs, preview)]
    pictures = sum(map(len, saved_pictures(server, done.prompt, done.outputs).values()))
    assert len(maps) == pictures * sum(key.startswith("subjects.") for key in done.prompt[apply]["inputs"])
    assert not any(np.array_equal(*pair) for pair in itertools.combinations(maps, 2))


@pytest.mark.live
def test_report_tells_of_the_routed_half(run, server):
    done = run(REPORTED)
    (report,) = nodes_of(done.prompt, "MMDiffReport")
    outputs = server.run(done.prompt | {"said": {"class_type": "PreviewAny", "inputs": {"source": [report, 0]}}})
    (said,) = outputs["said"]["text"]
    assert "routing auto" in said
    assert said.count("coverage by routing") == said.count("likeness, whole picture") == 2


@pytest.mark.live
@pytest.mark.parametrize("number", [0, 1])
def test_demo_paints_other_pictures_of_another_character(number, run, server):
    done = run(DEMO)
    prompt = copy.deepcopy(done.prompt)
    prompt[nodes_of(prompt, "MMDiffDemoCharacter")[number]]["inputs"]["seed"] += 1
    before, after = (saved_pictures(server, prompt, outputs) for outputs in (done.outputs, server.run(prompt)))
    for pair in zip(itertools.chain(*before.values()), itertools.chain(*after.values()), strict=True):
        assert not np.array_equal(*pair)


@pytest.mark.live
def test_from_photos_to_a_checkpoint_every_node_shows_what_became_of_it(run, server):
    """Data, training and score of one workflow; the pictures are looked at where it is run in full."""
    done = run(FROM_PHOTOS)
    (record,), (train,), (evaluate,) = (
        nodes_of(done.prompt, kind) for kind in ("MMDiffWriteRecord", "MMDiffTrain", "MMDiffEvaluate")
    )
    data = server.folder / "input" / "mmdiff_data" / "demo_cats"
    assert len(list(data.glob("*.json"))) == 4
    trained = server.folder / "output" / "mmdiff_training" / "demo_cats"
    assert (trained / "mmdiff.safetensors").is_file() and len((trained / "log.csv").read_text().splitlines()) == 3
    file = min((server.folder / "output" / "mm-diff").glob("demo_from_photos*.json"))
    assert [score["metric"] for score in json.loads(file.read_text())["scores"]] == ["CLIP-I"]
    for node in (record, train, evaluate):
        (sheet,) = server.images(done.outputs, node)
        assert pixels(sheet).std() > 1


@pytest.mark.live
@pytest.mark.parametrize("name", SAVED)
def test_saved_subject_paints_the_same_picture_as_its_photo(name, run, server):
    done = run(name)
    from_file = saved_pictures(server, done.prompt, done.outputs)
    prompt = copy.deepcopy(done.prompt)
    (apply,), (encode,) = nodes_of(prompt, "MMDiffApply"), nodes_of(prompt, "MMDiffEncodeSubject")
    prompt[apply]["inputs"]["subjects.subject_1"] = [encode, 0]
    from_photo = saved_pictures(server, prompt, server.run(prompt))
    for node_id, pictures in from_file.items():
        assert np.array_equal(pictures, from_photo[node_id])


def tiny_prompt(workflow: dict[str, Any], object_info: dict[str, Any], photos: list[str]) -> Prompt:
    return with_tiny_models(to_api(workflow, object_info), photos, SIZE, STEPS)


QUICK = {
    "EmptyLatentImage": {"batch_size": 1},
    "KSampler": {"steps": STEPS},
    "MMDiffTrain": {"steps": 2},
    "MMDiffDemoScenes": {"count": 4},
}


def quick(prompt: Prompt) -> Prompt:
    """A demo with few steps and pictures."""
    for node in prompt.values():
        node["inputs"] |= QUICK.get(node["class_type"], {})
    return prompt


def plain_prompt(prompt: Prompt) -> Prompt:
    """The prompt without MM-Diff; a text that comes from a node of its own is written where it goes."""
    texts = {(key, 0): prompt[key]["inputs"]["value"] for key in nodes_of(prompt, "PrimitiveStringMultiline")}
    prompt = copy.deepcopy({key: node for key, node in prompt.items() if node["class_type"] != "MMDiffRoutingPreview"})
    relink(prompt, texts)
    return without_mmdiff(prompt)


def queue_twice(server: LiveServer, prompt: Prompt) -> Run:
    outputs = server.run(prompt)
    ran_again: list[str] = []
    server.run(prompt, on_progress=lambda node_id, *_: ran_again.append(node_id))
    return Run(prompt, outputs, ran_again)


def saved_pictures(server: LiveServer, prompt: Prompt, outputs: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """{id of a Save Image: its pictures}, at least one each and none of one colour."""
    found = {key: [pixels(picture) for picture in server.images(outputs, key)] for key in nodes_of(prompt, "SaveImage")}
    assert found and all(found.values())
    assert all(picture.std() > 1 for pictures in found.values() for picture in pictures)
    return found


def nodes_of(prompt: Prompt, kind: str) -> list[str]:
    return [node_id for node_id, node in prompt.items() if node["class_type"] == kind]


def is_valid(key: str, spec: list, value: Any, node: dict[str, Any]) -> bool:
    """Whether a widget's value is one that the server takes; a file may also be one that the workflow links to."""
    kind, settings = spec[0], spec[1] if len(spec) > 1 else {}
    if kind in ("INT", "FLOAT"):
        return isinstance(value, int | float) and settings["min"] <= value <= settings["max"]
    if kind in ("STRING", "BOOLEAN"):
        return isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind])
    options = kind if isinstance(kind, list) else settings["options"]
    linked = [model["name"] for model in node["properties"].get("models", [])]
    known = [*options, *linked] or [value]
    return value in known or key in USERS_OWN or node["type"] == "MMDiffLoader"


Box = tuple[float, float, float, float]


def corners(x: float, y: float, width: float, height: float) -> Box:
    return x, y, x + width, y + height


def box_of(node: dict[str, Any]) -> Box:
    (x, y), (width, height) = node["pos"], node["size"]
    height *= not node["flags"].get("collapsed")
    return corners(x, y - TITLE_HEIGHT, width, height + TITLE_HEIGHT)


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(box: Box, group: Box) -> bool:
    return group[0] <= box[0] and group[1] <= box[1] and box[2] <= group[2] and box[3] <= group[3]
