"""What nodes take from widgets and sockets: names, masks and pictures, prompts, and whole workflows."""

from __future__ import annotations

import asyncio
import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import folder_paths
import torch
from hypothesis import strategies as st

from .outcome import OURS, PACK, REFUSED, RIGHT, Wrong

PARTS = [
    *(
        "..",
        ".",
        "/",
        "\\",
        "~",
        "~nosuchuser",
        "\0",
        "\n",
        ":",
        "%",
        "%date%",
        "%year%",
        "con",
        "NUL",
        "COM1",
        "lpt\xb9",
    ),
    *(
        "anna",
        "Anna 2",
        "a-b_c",
        ".safetensors",
        "\u5b89\u5a1c",
        "\u0430",
        "\u0e19\u0e49\u0e33",
        "\U0001f600",
        "\ud800",
    ),
    *(" ", "x" * 150, "\u5b89" * 70, "|", "<|subj|>", "C:", "$", "*", "\u202e", "\xa0"),
]
texts = st.one_of(st.lists(st.sampled_from(PARTS), max_size=4).map("".join), st.text(max_size=60))


class Names:
    """Every name and folder that a node takes: made in its folder, or refused. Cases are (node's input, name)."""

    def __init__(self, folder: Path):
        from mm_diff_pack.nodes import checkpoints, evaluate, folders, subjects, train

        self.root = folder / "names"
        for name in ("mmdiff", "mmdiff_subjects", "output", "input"):
            (self.root / name).mkdir(parents=True)
        for name in ("mmdiff", "mmdiff_subjects"):
            folder_paths.folder_names_and_paths[name] = ([str(self.root / name)], {".safetensors", ".bin"})
        folder_paths.set_output_directory(str(self.root / "output"))
        folder_paths.set_input_directory(str(self.root / "input"))
        (self.root / "secret.safetensors").write_text("secret")
        self.writes = {
            "subject": lambda name: folders.new_file(subjects.FOLDER, name),
            "checkpoint": lambda name: folders.new_file(checkpoints.FOLDER, name),
            "training": lambda name: train.output_folder(name),
            "evaluation": lambda name: (evaluate.check_prefix(name), evaluate.report_path(name, 64, 64))[1],
        }
        self.reads = {
            "load subject": lambda name: folders.find(subjects.FOLDER, name, "file"),
            "load checkpoint": lambda name: folders.find(checkpoints.FOLDER, name, "checkpoint"),
        }
        self.others = {
            "data": train.data_path,
            "region": subjects.trigger_name,
        }
        self.cases = st.tuples(st.sampled_from([*self.writes, *self.reads, *self.others]), texts)

    def __call__(self, case) -> str:
        kind, name = case
        if kind in self.others:
            self.others[kind](name)
            return RIGHT
        path = (self.writes | self.reads)[kind](name)
        if ".." in path.parts or not path.resolve().is_relative_to(self.root / path.relative_to(self.root).parts[0]):
            raise Wrong(f"leads to {path}")
        if kind in self.writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.0123456789ab.partial")
            for made in (path, partial):
                made.write_text("")
                made.unlink()
        return RIGHT


NUMBERS = [0.0, 1.0, 0.5, -1.0, 2.0, 1e30, math.nan, math.inf]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
arrays = st.tuples(
    st.one_of(
        st.lists(st.sampled_from([0, 1, 2, 3, 5, 64]), max_size=5),
        st.sampled_from([(6, 4), (1, 6, 4), (2, 6, 4), (1, 6, 4, 3), (2, 5, 5, 4), (1, 1, 1, 1)]),
    ),
    st.sampled_from(DTYPES),
    st.lists(st.one_of(st.sampled_from(NUMBERS), st.floats(0, 1)), min_size=1, max_size=2),
)


def array(shape, dtype, values) -> torch.Tensor:
    made = torch.full(shape, values[0], dtype=torch.float64)
    if made.numel() and len(values) > 1:
        made.view(-1)[-1] = values[1]
    return made.to(dtype)


class Masks:
    """Masks and pictures of every shape and dtype: finite and in 0..1, or refused."""

    def __init__(self, folder: Path):
        from mm_diff_pack.nodes import images, subjects

        self.images, self.region = images, subjects.MMDiffSubjectRegion.execute
        self.subject = replace(make_subject(4, 2, 8))
        self.cases = st.tuples(st.sampled_from(["region", "masks", "photos"]), arrays)

    def __call__(self, case) -> str:
        kind, values = case
        given = array(*values)
        if kind == "region":
            found = [self.region(self.subject, 1.0, "", 0.0, 1.0, mask=given).args[0].region]
        elif kind == "masks":
            found = self.images.masks_from(given, [torch.rand(6, 4, 3), torch.rand(5, 5, 3)])
        else:
            found = self.images.photos_from(given)
        for one in found:
            if not (one.isfinite().all() and one.dtype == torch.float32 and 0 <= one.min() <= one.max() <= 1):
                raise Wrong(f"gave {tuple(one.shape)} {one.dtype} beyond 0..1")
        return RIGHT


def make_subject(cls: int, count: int, width: int, space: str = "0" * 16, **fields):
    from mm_diff_pack.mmdiff_model.subject import Subject

    return Subject(torch.randn(cls), torch.randn(1, count, width), "portrait", space, **fields)


WORDS = [
    *("a ", "man", "woman", "boy", "<|subj|>", "<|subj|>", "<|subj:1|>", "<|subj:2|>", "<|subj:anna|>", "<|subj:9|>"),
    *(
        "<|subj:|>",
        "<|subj",
        "|>",
        "(",
        ")",
        "((",
        "))",
        ":1.2)",
        ": 1.2)",
        ":1e0)",
        ":nan)",
        ":1_0)",
        ":" + "9" * 5000,
    ),
    *(
        " ",
        ", ",
        "s",
        "\\(",
        "\\)",
        "embedding:",
        "embedding:none ",
        "<|startoftext|>",
        "<|endoftext|>",
        "\u7537\u4eba",
    ),
    *(
        "\U0001f600",
        "\u0631\u062c\u0644",
        "e\u0301",
        "\0",
        "\n",
        "word " * 70,
        "[",
        "]",
        "<|subj:" + "1" * 5000 + "|>",
        "BREAK",
    ),
]

PHRASES = [
    *(
        "a man<|subj|>",
        "(a boy:1.2)<|subj|>",
        "a (woman<|subj|>:1.3)",
        "two girls<|subj:2|>",
        "an old man<|subj:anna|>",
    ),
    *(
        "the sea",
        "word " * 73 + "man<|subj|>",
        "\u7537\u4eba<|subj|>",
        "a boy<|subj|>s",
        "man<|subj|>a",
        "((man))<|subj:1|>",
    ),
]


class Prompts:
    """Prompts around triggers: conditionings of finite numbers in chunks of 77, or refused."""

    def __init__(self, folder: Path):
        from mm_diff_pack.mmdiff_model.checkpoint import load_checkpoint
        from mm_diff_pack.mmdiff_model.text import encode_text

        from tiny_pack.checkpoint import write_official_checkpoint
        from tiny_pack.models import make_clip

        (folder / "embeddings").mkdir()
        self.checkpoint = load_checkpoint(write_official_checkpoint(folder / "portrait"))
        self.clip, self.encode = make_clip(20, str(folder / "embeddings")), encode_text
        sizes = (96, 4, 512, self.checkpoint.hash)
        self.subjects = [make_subject(*sizes, name="anna"), make_subject(*sizes)]
        sentences = st.lists(st.sampled_from(PHRASES), min_size=1, max_size=3).map(" and ".join)
        prompts = st.one_of(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map("".join), st.text(max_size=40))
        self.cases = st.tuples(st.one_of(sentences, prompts), st.one_of(st.just("blurry"), prompts))

    def __call__(self, case) -> str:
        text = self.encode(self.clip, self.checkpoint, self.subjects, *case)
        for conditioning in (text.positive, text.negative):
            for embeddings, options in conditioning:
                if embeddings.shape[1] % 77 or not embeddings.isfinite().all():
                    raise Wrong(f"conditioning {tuple(embeddings.shape)}")
                if not options["pooled_output"].isfinite().all():
                    raise Wrong("pooled text that is not finite")
        return RIGHT


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just(10**400), st.just([]), st.just({}),
    st.lists(st.one_of(st.text(max_size=3), st.integers(-3, 9)), min_size=2, max_size=2),
)  # fmt: skip


class Workflows:
    """The pack's workflows with values, links, inputs and nodes changed: valid, or refused without an exception."""

    def __init__(self, folder: Path):
        import execution
        import mm_diff_pack

        import nodes

        extension = asyncio.run(mm_diff_pack.comfy_entrypoint())
        for node in asyncio.run(extension.get_node_list()):
            nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node
        asyncio.run(nodes.init_builtin_extra_nodes())
        self.validate = execution.validate_prompt
        self.prompts = [prompt for prompt in map(self.prompt, sorted((PACK / "workflows").glob("*.json"))) if prompt]
        index = st.integers(0, 10_000)
        kinds = st.sampled_from(["value", "drop", "node", "class", "more"])
        self.cases = st.tuples(index, st.lists(st.tuples(kinds, index, index, values), min_size=1, max_size=4))

    def prompt(self, path: Path) -> dict | None:
        import nodes
        from workflow_api import to_api

        saved = json.loads(path.read_text())
        kinds = {node["type"] for node in saved["nodes"]}
        known = {kind: nodes.NODE_CLASS_MAPPINGS[kind] for kind in kinds if kind in nodes.NODE_CLASS_MAPPINGS}
        try:
            return to_api(saved, {kind: {"input": node.INPUT_TYPES()} for kind, node in known.items()})
        except ValueError:
            return None

    def __call__(self, case) -> str:
        number, changes = case
        prompt = copy.deepcopy(self.prompts[number % len(self.prompts)])
        for kind, node, key, value in changes:
            self.change(prompt, kind, node, key, value)
        if not prompt:
            return RIGHT
        valid, error, _, found = asyncio.run(self.validate("fuzz", prompt, None))
        for one in [reason for node in found.values() for reason in node["errors"]]:
            frames = "".join((one.get("extra_info") or {}).get("traceback") or [])
            if str(PACK / "nodes") in frames or str(PACK / "mmdiff_model") in frames:
                raise RuntimeError(f"{one['extra_info']['exception_type']}: {one['details']}")
            if one["type"] == "custom_validation_failed" and not OURS.search(one["details"]):
                raise Wrong(f"refused without the input's name: {one['details']}")
        return RIGHT if valid else REFUSED

    def change(self, prompt: dict, kind: str, node: int, key: int, value) -> None:
        if not prompt:
            return
        name = sorted(prompt)[node % len(prompt)]
        inputs = prompt[name]["inputs"]
        if kind == "node":
            del prompt[name]
        elif kind == "class":
            prompt[name]["class_type"] = prompt[sorted(prompt)[key % len(prompt)]]["class_type"]
        elif kind == "more":
            inputs[str(value)[:20]] = value
        elif inputs:
            chosen = sorted(inputs)[key % len(inputs)]
            inputs[chosen] = value
            if kind == "drop":
                del inputs[chosen]
