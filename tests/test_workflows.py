"""The shipped workflows: valid and tidy as files, and each runs from end to end in a real ComfyUI with tiny models."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import LiveServer, Prompt
from live_fixtures import pixels
from PIL import Image
from tiny_prompt import with_tiny_models, without_mmdiff
from workflow_api import COMMENTS, MUTED, to_api, widget_values

pytest_plugins = ["live_fixtures"]

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
WORKFLOWS = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
SAVE_AND_LOAD = "save_and_load_subject"

TITLE_HEIGHT = 30
THUMBNAIL_WIDTH, THUMBNAIL_BYTES = 512, 50_000
SIZE, STEPS = 64, 2
USERS_OWN = {"image", "file"}  # inputs that list what the user has made or uploaded

each_workflow = pytest.mark.parametrize("name", WORKFLOWS)


def load(name: str) -> dict[str, Any]:
    return json.loads(WORKFLOWS[name].read_text())


def real_nodes(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in workflow["nodes"] if node["type"] not in COMMENTS]


def test_every_kind_of_use_has_a_workflow():
    used = {node["type"] for name in WORKFLOWS for node in load(name)["nodes"]}
    assert len(WORKFLOWS) == 9
    assert used >= {"MMDiffApply", "MMDiffMixSubjects", "MMDiffSubjectRegion", "MMDiffRoutingPreview"}
    assert used >= {"MMDiffSaveSubject", "MMDiffLoadSubject", "LoraLoader", "ControlNetApplyAdvanced"}


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


@pytest.mark.live
@pytest.mark.parametrize("name", [name for name in WORKFLOWS if name != SAVE_AND_LOAD])
def test_runs(name, server, object_info, photos):
    prompt = tiny_prompt(load(name), object_info, photos)
    personalised = run_and_check(server, prompt)
    plain = saved_pictures(server, plain_prompt(prompt))
    assert personalised.keys() == plain.keys()
    for node_id, pictures in personalised.items():
        for ours, theirs in zip(pictures, plain[node_id], strict=True):
            assert ours.shape == theirs.shape == (SIZE, SIZE, 3)
            assert not np.array_equal(ours, theirs)


@pytest.mark.live
def test_delay_changes_the_picture(server, object_info, photos):
    prompt = tiny_prompt(load("delayed_conditioning"), object_info, photos)
    from_the_start, delayed = itertools.chain(*saved_pictures(server, prompt).values())
    assert not np.array_equal(from_the_start, delayed)


@pytest.mark.live
@pytest.mark.parametrize("name", ["two_people_auto", "two_people_masks", "three_subjects"])
def test_routing_preview_shows_each_subject(name, server, object_info, photos):
    prompt = tiny_prompt(load(name), object_info, photos)
    (apply,) = nodes_of(prompt, "MMDiffApply")
    (preview,) = nodes_of(prompt, "MMDiffRoutingPreview")
    maps = [pixels(picture) for picture in server.images(server.run(prompt), preview)]
    assert len(maps) == sum(key.startswith("subjects.") for key in prompt[apply]["inputs"])
    assert not any(np.array_equal(*pair) for pair in itertools.combinations(maps, 2))


@pytest.mark.live
def test_save_and_load_subject(server, object_info, photos):
    workflow = load(SAVE_AND_LOAD)
    loading = {node["id"] for node in workflow["nodes"] if node["mode"] == MUTED}
    saved = tiny_prompt(workflow, object_info, photos)
    server.run(saved)
    (file,) = (server.models / "mmdiff_subjects").glob("*.safetensors")

    for node in workflow["nodes"]:
        node["mode"] = 0 if node["id"] in loading or not node["type"].startswith("MMDiffSave") else MUTED
    prompt = tiny_prompt(workflow, object_info, photos)
    (load_node,) = nodes_of(prompt, "MMDiffLoadSubject")
    assert prompt[load_node]["inputs"]["file"] == file.name
    from_file = run_and_check(server, prompt)

    (apply,) = nodes_of(prompt, "MMDiffApply")
    (encode,) = nodes_of(prompt, "MMDiffEncodeSubject")
    prompt[apply]["inputs"]["subjects.subject_1"] = [encode, 0]
    from_photo = saved_pictures(server, prompt)
    for node_id, pictures in from_file.items():
        assert np.array_equal(pictures, from_photo[node_id])


def tiny_prompt(workflow: dict[str, Any], object_info: dict[str, Any], photos: list[str]) -> Prompt:
    return with_tiny_models(to_api(workflow, object_info), photos, SIZE, STEPS)


def plain_prompt(prompt: Prompt) -> Prompt:
    """The prompt without MM-Diff; texts that come from nodes of their own are put where they go."""
    written = {
        node_id: {name: text_of(prompt, value) for name, value in node["inputs"].items()} | {}
        for node_id, node in prompt.items()
    }
    prompt = {node_id: {**node, "inputs": written[node_id]} for node_id, node in prompt.items()}
    return without_mmdiff({key: node for key, node in prompt.items() if node["class_type"] != "MMDiffRoutingPreview"})


def text_of(prompt: Prompt, value: Any) -> Any:
    source = prompt[value[0]] if isinstance(value, list) else {"class_type": None}
    return source["inputs"]["value"] if source["class_type"] == "PrimitiveStringMultiline" else value


def run_and_check(server: LiveServer, prompt: Prompt) -> dict[str, list[np.ndarray]]:
    """The pictures of a prompt, after queueing it twice: the second time no node may run."""
    pictures = saved_pictures(server, prompt)
    ran_again = []
    server.run(prompt, on_progress=lambda node_id, *_: ran_again.append(node_id))
    assert not ran_again
    return pictures


def saved_pictures(server: LiveServer, prompt: Prompt) -> dict[str, list[np.ndarray]]:
    """{id of a Save Image: its pictures}, at least one each and none of one colour."""
    outputs = server.run(prompt)
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
    return corners(x, y - TITLE_HEIGHT, width, height + TITLE_HEIGHT)


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(box: Box, group: Box) -> bool:
    return group[0] <= box[0] and group[1] <= box[1] and box[2] <= group[2] and box[3] <= group[3]
