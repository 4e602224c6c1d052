"""Whole workflows, changed."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path

from hypothesis import strategies as st

from .names import texts
from .outcome import OURS, PACK, REFUSED, RIGHT, SURROGATE, Wrong
from .values import LARGE

values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just(10**400), st.just([]), st.just({}),
    st.lists(st.one_of(st.text(max_size=3), st.integers(-3, 9)), min_size=2, max_size=2), st.sampled_from(LARGE),
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
            if one["type"] == "custom_validation_failed" and SURROGATE.search(one["details"]):
                raise Wrong(f"said what ends ComfyUI's worker: {one['details']}")
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
