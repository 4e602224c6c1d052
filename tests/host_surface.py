"""What the pack uses of ComfyUI, read from its code: names, and how they are called.

`python tests/host_surface.py` writes the list, docs/host-surface.txt; tests/test_host_surface.py compares it with the
code and with the host that runs.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "docs" / "host-surface.txt"
HOST_MODULES = (
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "latent_preview",
    "node_helpers",
)
CODE = ("mmdiff_model", "nodes", "small_world")


def uses() -> list[str]:
    """`comfy.sd.VAE(config, sd)` for a call, with its number of unnamed arguments first, or a name alone."""
    return sorted({use for folder in CODE for path in (ROOT / folder).rglob("*.py") for use in uses_in(path)})


def uses_in(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases = dict(aliases_of(tree))
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if id(node) not in inner and (name := dotted(node, aliases)):
            yield name + (arguments(calls[id(node)]) if id(node) in calls else "")


def aliases_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Local name -> the host's, of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in HOST_MODULES:
                    yield alias.asname or alias.name.partition(".")[0], alias.name.partition(".")[0]
        elif (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").partition(".")[0] in HOST_MODULES
            and not node.level
        ):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def dotted(node: ast.AST, aliases: dict[str, str]) -> str | None:
    if isinstance(node, ast.Attribute):
        return (base := dotted(node.value, aliases)) and f"{base}.{node.attr}"
    return aliases.get(node.id) if isinstance(node, ast.Name) else None


def arguments(call: ast.Call) -> str:
    named = sorted(keyword.arg or "**" for keyword in call.keywords)
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    unnamed = ["*"] if starred else [str(len(call.args))] if call.args else []
    return f"({', '.join([*unnamed, *named])})"


def resolve(name: str) -> Any:
    """What a dotted name is in the running host. Raises ImportError, AttributeError."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


def problem(use: str) -> str | None:
    """What the running host lacks for a use, or None."""
    name, _, call = use.partition("(")
    try:
        found = resolve(name)
    except (ImportError, AttributeError) as error:
        return f"{use}: {error}"
    given = [argument for argument in call.rstrip(")").split(", ") if argument]
    if not call or "*" in given or "**" in given:
        return None
    unnamed = int(given.pop(0)) if given and given[0].isdigit() else 0
    try:
        inspect.signature(found).bind(*range(unnamed), **dict.fromkeys(given))
    except TypeError as error:
        return f"{use}: {error}"
    except ValueError:  # built in, without a signature
        return None
    return None


if __name__ == "__main__":
    LIST.write_text("\n".join(uses()) + "\n", encoding="utf-8")
