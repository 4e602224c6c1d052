"""The live tests' own client: saved workflows become the prompts that the server runs, and failures come back whole."""

import pytest

from live import LiveServer, PromptError, ServerError
from workflow_api import BYPASSED, MUTED, to_api

pytest_plugins = ["live_fixtures"]
pytestmark = pytest.mark.live


def node(number, kind, inputs=(), outputs=(), values=(), mode=0):
    """A node as the front end saves it; inputs are (name, type, link)."""
    return {
        "id": number,
        "type": kind,
        "mode": mode,
        "inputs": [dict(zip(("name", "type", "link"), entry, strict=True)) for entry in inputs],
        "outputs": [{"name": name, "type": name} for name in outputs],
        "widgets_values": list(values),
    }


@pytest.fixture
def workflow():
    """A picture -> reroute -> bypassed inversion -> growing inputs of a batch node -> preview, and a muted branch."""
    image = ("IMAGE",)
    return {
        "nodes": [
            node(1, "EmptyImage", outputs=image, values=[16, 8, 1, 0]),
            node(2, "Reroute", [("", "*", 1)], image),
            node(3, "ImageInvert", [("image", "IMAGE", 2)], image, mode=BYPASSED),
            node(4, "ImageInvert", [("image", "IMAGE", 3)], image, mode=MUTED),
            node(5, "BatchImagesNode", [("images.image0", "IMAGE", 4), ("images.image1", "IMAGE", 5)], image),
            node(6, "PreviewImage", [("images", "IMAGE", 6)]),
            node(7, "PreviewImage", [("images", "IMAGE", 7)], mode=MUTED),
            node(8, "MarkdownNote", values=["words"]),
        ],
        "links": [
            [1, 1, 0, 2, 0, "IMAGE"],
            [2, 2, 0, 3, 0, "IMAGE"],
            [3, 1, 0, 4, 0, "IMAGE"],
            [4, 3, 0, 5, 0, "IMAGE"],
            [5, 1, 0, 5, 1, "IMAGE"],
            [6, 5, 0, 6, 0, "IMAGE"],
            [7, 4, 0, 7, 0, "IMAGE"],
        ],
    }


def test_to_api(workflow, server, object_info):
    prompt = to_api(workflow, object_info)
    assert prompt == {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": 0}},
        "5": {"class_type": "BatchImagesNode", "inputs": {"images.image0": ["1", 0], "images.image1": ["1", 0]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }
    assert len(server.images(server.run(prompt), "6")) == 2


def test_to_api_skips_the_widget_after_a_seed(object_info):
    values = [5, "randomize", 30, 4.5, "euler", "normal", 1.0]
    prompt = to_api({"nodes": [node(1, "KSampler", values=values)], "links": []}, object_info)
    assert prompt["1"]["inputs"] == {
        "seed": 5,
        "steps": 30,
        "cfg": 4.5,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }


def test_to_api_names_a_node_type_that_is_missing(object_info):
    with pytest.raises(ValueError, match="node 1: the server has no node type NoSuchNode"):
        to_api({"nodes": [node(1, "NoSuchNode")], "links": []}, object_info)


def test_a_refused_prompt_says_why(server):
    with pytest.raises(PromptError, match="node 1 .PreviewImage.: required_input_missing: .*images") as failure:
        server.run({"1": {"class_type": "PreviewImage", "inputs": {}}})
    assert failure.value.node_id == "1"


def test_a_failed_node_says_why_and_the_server_goes_on(server, workflow, object_info):
    failing = {
        "1": {"class_type": "MMDiffFaceAnalysisLoader", "inputs": {"pack": "antelopev2", "provider": "CPU"}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    (server.models / "insightface" / "models" / "antelopev2").mkdir(parents=True)
    with pytest.raises(PromptError, match="antelopev2") as failure:
        server.run(failing)
    assert (failure.value.node_id, failure.value.node_type) == ("1", "MMDiffFaceAnalysisLoader")
    assert server.run(to_api(workflow, object_info))


def test_a_pack_that_does_not_load_stops_the_start(tmp_path, server):
    (tmp_path / "__init__.py").write_text("import no_such_module_anywhere\n")
    with (
        pytest.raises(ServerError, match="no_such_module_anywhere"),
        LiveServer(server.comfyui, packs={"broken": tmp_path}),
    ):
        pass
