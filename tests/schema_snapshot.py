"""What saved graphs rely on, of every node: `python tests/schema_snapshot.py` writes it to schema.json after a change.

Saved workflows hold widget values by position and name nodes, sockets and options, so ids, order, types, defaults and
option names are promises. Options that are names of files are left out.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("schema.json")
FILE_INPUTS = {
    "MMDiffLoader": {"checkpoint"},
    "MMDiffFaceAnalysisLoader": {"pack"},
    "MMDiffLoadSubject": {"file"},
    "MMDiffAnnotate": {"models"},
    "MMDiffEvaluate": {"clip_model", "dino_model", "dinov2_model", "face_recogniser", "box_model"},
}

Snapshot = dict[str, dict[str, list[dict[str, Any]]]]


def snapshot(pack: Any) -> Snapshot:
    """{node id: {"inputs": [...], "outputs": [...]}} of the imported pack."""
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    return {schema.node_id: of_node(schema) for schema in (node.GET_SCHEMA() for node in nodes)}


def of_node(schema: Any) -> dict[str, list[dict[str, Any]]]:
    left_out = FILE_INPUTS.get(schema.node_id, set())
    return {
        "inputs": [of_input(given, given.id not in left_out) for given in schema.inputs],
        "outputs": [{"name": given.display_name, "type": given.io_type} for given in schema.outputs],
    }


def of_input(given: Any, with_options: bool) -> dict[str, Any]:
    found = {"id": given.id, "type": given.io_type, "optional": bool(given.optional)}
    if hasattr(given, "io_types"):
        found["type"] = ",".join(kind.io_type for kind in given.io_types)
    if hasattr(given, "template"):
        found["names"] = list(given.template.names)
        found["of"] = given.template.input.io_type
    if hasattr(given, "default") and with_options:
        found["default"] = given.default
    if hasattr(given, "options") and with_options:
        found["options"] = list(given.options)
    return found


def broken(promised: Snapshot, found: Snapshot) -> list[str]:
    """One sentence for each promise that is not kept. What was added at an end breaks none."""
    sentences = []
    for node, sides in promised.items():
        if node not in found:
            sentences.append(f"{node} is gone. Keep its id.")
            continue
        for side, entries in sides.items():
            for number, then in enumerate(entries):
                now = found[node][side][number] if number < len(found[node][side]) else {}
                changed = [key for key in then if not kept(key, then[key], now.get(key))]
                if changed:
                    name = then.get("id", then.get("name"))
                    sentences.append(f"{node}, {side[:-1]} {number + 1}, {name}: {', '.join(changed)} changed.")
    return sentences


def kept(key: str, then: Any, now: Any) -> bool:
    return now is not None and now[: len(then)] == then if key in ("options", "names") else now == then


if __name__ == "__main__":
    import conftest

    FILE.write_text(json.dumps(snapshot(sys.modules[conftest.PACK]), indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {FILE}")
