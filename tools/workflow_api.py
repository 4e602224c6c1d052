"""From a workflow as the front end saves it to the prompt that it posts."""

from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
COMMENTS = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4

Node = dict[str, Any]


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The API-format prompt of a saved workflow, given the server's /object_info.

    Muted nodes are left out, bypassed nodes and reroutes passed through. Subgraphs are not unpacked.
    Raises ValueError naming a node whose type the server does not know.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    prompt = {}
    for node in nodes.values():
        if node["type"] in COMMENTS | {"Reroute"} or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise ValueError(f"node {node['id']}: the server has no node type {node['type']}.")
        inputs = widget_values(node, object_info[node["type"]])
        for socket in node.get("inputs", []):
            source = origin(socket.get("link"), nodes, links)
            if source is not None:
                inputs[socket["name"]] = source
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def widget_values(node: Node, info: dict[str, Any]) -> dict[str, Any]:
    """{input: value} of a node's widgets. Saved values have no names: they follow the order of the type's inputs.

    What was not saved is the type's default, of a list its first entry.
    """
    names, defaults = [], {}
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            settings = options[0] if options else {}
            if (isinstance(kind, list) or kind in WIDGET_TYPES) and not settings.get("forceInput"):
                names.append(name)
                listed = kind if isinstance(kind, list) else settings.get("options", [])
                if (default := settings.get("default", next(iter(listed), None))) is not None:
                    defaults[name] = default
                if settings.get("control_after_generate") or settings.get("image_upload"):
                    names.append(None)  # a second widget that the front end adds and does not post
    values = node.get("widgets_values") or []
    return defaults | {name: value for name, value in zip(names, values, strict=False) if name is not None}


def origin(link: int | None, nodes: dict[int, Node], links: dict[int, tuple[int, int]]) -> list[Any] | None:
    """[node id, output slot] that a link comes from, past reroutes and bypassed nodes; None if nothing is there."""
    while link is not None:
        source, slot = links[link]
        node = nodes[source]
        mode = node.get("mode", 0)
        if mode == MUTED:
            return None
        if mode != BYPASSED and node["type"] != "Reroute":
            return [str(source), slot]
        link = passed_through(node, slot)
    return None


def passed_through(node: Node, slot: int) -> int | None:
    """The link that a reroute or bypassed node hands on at an output: into an input of the output's type."""
    if node["type"] == "Reroute":
        return node["inputs"][0].get("link")
    kind = node["outputs"][slot]["type"]
    inputs = node["inputs"]
    candidates = [*inputs[slot : slot + 1], *inputs]
    return next((socket["link"] for socket in candidates if socket["type"] == kind and socket.get("link")), None)
