"""What users read: help pages, tooltips and the README, held against the nodes and the messages themselves."""

import ast
import asyncio
import re
import sys
from collections.abc import Iterator

import pytest
from comfy_api.latest import io

from conftest import PACK, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCHEMAS = [node.GET_SCHEMA() for node in asyncio.run(asyncio.run(sys.modules[PACK].comfy_entrypoint()).get_node_list())]
WEB_DIRECTORY = ROOT / sys.modules[PACK].WEB_DIRECTORY
EACH_NODE = pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.node_id)


def named_inputs(schema: io.Schema) -> Iterator[tuple[str, str, io.Input]]:
    """(locale key, name, input) of every socket that the front end shows: a growing list also has its own sockets."""
    for given in schema.inputs:
        yield given.id, given.id, given
        if isinstance(given, io.Autogrow.Input):
            for name in given.template.names:
                yield f"{given.id}_{name}", name, given.template.input


@EACH_NODE
def test_every_input_and_output_has_a_tooltip(schema):
    assert schema.description
    without = [given.id for _, _, given in named_inputs(schema) if not given.tooltip]
    without += [given.display_name for given in schema.outputs if not given.tooltip]
    assert not without


@EACH_NODE
def test_help_page_names_every_input_and_output(schema):
    page = (WEB_DIRECTORY / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
    inputs, _, outputs = page.partition("| Output |")
    assert page.startswith(f"# {schema.display_name}\n")
    assert re.findall(r"^\| `([\w ]+)` \|", inputs, re.MULTILINE) == [given.id for given in schema.inputs]
    assert re.findall(r"^\| `([\w ]+)` \|", outputs, re.MULTILINE) == [given.display_name for given in schema.outputs]
    assert "**When to use:**" in page and "**Tip:**" in page


def test_no_help_page_without_a_node():
    assert {page.stem for page in (WEB_DIRECTORY / "docs").glob("*.md")} == {schema.node_id for schema in SCHEMAS}


def test_readme_mentions_every_node_and_workflow():
    names = {schema.node_id for schema in SCHEMAS} | {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert not [name for name in names if f"`{name}`" not in README]


def anchors(page: str) -> set[str]:
    """What links to the headings of a Markdown page end with."""
    titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_readme_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https://)([^)]+)\)", README):
        file, _, anchor = target.partition("#")
        linked = ROOT / (file or "README.md")
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target


def messages() -> str:
    """Every string of the pack's own code, with a line break between two that are not one message."""
    files = [*(ROOT / "nodes").glob("*.py"), *(ROOT / "mmdiff_model").rglob("*.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    return "\n".join(
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def quoted_messages() -> list[str]:
    """The messages that the troubleshooting table quotes, in its first column."""
    table = README.partition("## Troubleshooting")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(.*?)`(?: \(in the log\))? \|", table, re.MULTILINE)


@pytest.mark.parametrize("message", quoted_messages())
def test_messages_that_the_readme_quotes_are_the_packs_own(message):
    said = messages()
    parts = [part for part in message.split("...") if part]
    assert parts
    assert not [part for part in parts if part not in said]
