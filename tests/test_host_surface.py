"""What the pack uses of ComfyUI is there, as it is used: an update that changes it shows here before a user sees it."""

import inspect

import comfy.samplers
import pytest
from comfy.clip_vision import ClipVisionModel
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

import demo_pictures
import nodes
from helpers import encode, random_subject, record
from host_surface import LIST, problem, uses

pytestmark = pytest.mark.hosts

METHODS = {
    ModelPatcher: {
        "add_object_patch": (),
        "add_patches": ("patches", "strength_patch"),
        "add_wrapper_with_key": ("wrapper_type", "key", "wrapper"),
        "clone": ("disable_dynamic", "model_override"),
        "get_wrappers": ("wrapper_type", "key"),
        "is_dynamic": (),
        "patch_weight_to_device": ("key",),
    },
    CLIP: {
        "add_patches": ("patches",),
        "clone": (),
        "encode_from_tokens_scheduled": ("tokens", "add_dict"),
        "load_model": (),
        "tokenize": ("text", "return_word_ids"),
    },
    VAE: {"decode": (), "encode": ()},
    ClipVisionModel: {"__init__": ("json_config",)},
    BaseModel: {
        "apply_model": ("x", "t", "c_crossattn", "transformer_options"),
        "encode_adm": (),
        "get_dtype_inference": (),
        "process_latent_in": ("latent",),
    },
    comfy.samplers.CFGGuider: {"sample": ("noise", "latent_image", "sampler", "sigmas", "callback", "seed")},
}
# what an attention patch finds in the options of each call
OPTIONS = {
    *("activations_shape", "attn_precision", "block", "block_index", "cond_or_uncond", "dim_head", "n_heads"),
    *("sigmas", "uuids"),
}


def test_the_list_is_what_the_code_uses():
    written = LIST.read_text(encoding="utf-8").splitlines()
    assert written == uses(), "run `python tests/host_surface.py`, which writes the list anew"


def test_the_host_has_all_of_it():
    lacking = [found for use in uses() if (found := problem(use))]
    assert not lacking, "\n".join(lacking)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_methods(kind):
    for name, wanted in METHODS[kind].items():
        parameters = inspect.signature(getattr(kind, name)).parameters
        assert set(wanted) <= set(parameters), f"{kind.__name__}.{name}{tuple(parameters)}"


def test_options_of_an_attention(tiny, checkpoint):
    seen: list[set[str]] = []

    def patch(q, k, v, extra_options):
        seen.append(set(extra_options))
        return q, k, v

    model = tiny.model.clone()
    model.set_model_attn2_patch(patch)
    record(model, encode(tiny, checkpoint, [random_subject(checkpoint, 1)]))
    assert seen and not OPTIONS - set.intersection(*seen)


def test_inputs_of_the_hosts_nodes():
    """Those of the demo's graphs; the workflows' are compared by tests/test_workflows.py in a live server."""
    graphs = demo_pictures.single_graph("cat", 3), demo_pictures.pair_graph([("cat", 3), ("robot", 1)])
    for graph in graphs:
        for node in graph.values():
            if node["class_type"].startswith("MMDiff"):
                continue
            inputs = nodes.NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
            known = {name for group in inputs.values() for name in group}
            assert set(node["inputs"]) <= known, node["class_type"]
