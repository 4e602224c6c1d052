"""What users read: help pages, tooltips and the README, held against the nodes and the messages themselves."""

import ast
import asyncio
import re
import sys
from collections.abc import Iterator
from functools import cache

import pytest
from comfy_api.latest import io

from conftest import PACK, ROOT
from translated import locale

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README_WORDS = 2000
SCHEMAS = [node.GET_SCHEMA() for node in asyncio.run(asyncio.run(sys.modules[PACK].comfy_entrypoint()).get_node_list())]
WEB_DIRECTORY = ROOT / sys.modules[PACK].WEB_DIRECTORY
HELP = WEB_DIRECTORY / "docs"
HEADINGS = {"en": ("Inputs", "Outputs"), "zh": ("\u8f93\u5165", "\u8f93\u51fa")}
NEVER_FAIL = {"MMDiffDemoModels", "MMDiffDemoCharacter", "MMDiffDemoScenes"}
CODE_COLUMNS = 24  # of a code block, in a panel of 222 px
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


def help_page(node_id: str, language: str) -> str:
    """What the front end shows: <id>/<language>.md, else <id>.md, which is English and serves every other language."""
    own = HELP / node_id / f"{language}.md"
    return (own if own.exists() else HELP / f"{node_id}.md").read_text(encoding="utf-8")


def named(section: str) -> list[str]:
    """What the bullets of a section begin with: a name or a message, as code."""
    return re.findall(r"^- `(.+?)`", section, re.MULTILINE)


def messages_quoted(node_id: str, language: str) -> list[str]:
    """The messages in a page's last section; the pages of nodes that never fail end with the outputs."""
    heading, _, section = help_page(node_id, language).rpartition("\n## ")[2].partition("\n")
    return [] if heading == HEADINGS[language][1] else named(section)


@EACH_NODE
@pytest.mark.parametrize("language", HEADINGS)
def test_help_page_names_every_input_and_output_as_the_node_shows_it(schema, language):
    page = help_page(schema.node_id, language)
    texts = locale(language)[schema.node_id]
    first = {given.id: f"{given.id}_{given.template.names[0]}" for given in schema.inputs if hasattr(given, "template")}
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    inputs, outputs = (named(sections[heading]) for heading in HEADINGS[language])
    assert page.startswith(f"# {texts['display_name']}\n")
    assert inputs == [texts["inputs"][first.get(given.id, given.id)]["name"] for given in schema.inputs]
    assert outputs == [text["name"] for text in texts["outputs"].values()]


@EACH_NODE
@pytest.mark.parametrize("language", HEADINGS)
def test_help_page_fits_its_narrow_panel(schema, language):
    page = help_page(schema.node_id, language)
    assert not re.search(r"^\|", page, re.MULTILINE)
    assert max(map(len, re.findall(r"^    (.*)", page, re.MULTILINE)), default=0) <= CODE_COLUMNS
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", page)
    assert not [picture for picture in pictures if not (HELP / picture).is_file()]


@EACH_NODE
def test_help_pages_quote_the_packs_own_messages(schema):
    quoted, in_chinese = (messages_quoted(schema.node_id, language) for language in HEADINGS)
    assert quoted == in_chinese
    assert bool(quoted) == (schema.node_id not in NEVER_FAIL)
    said = messages()
    assert not [part for message in quoted for part in message.split("...") if part not in said]


def test_no_help_page_or_picture_without_a_use():
    pages = {page.relative_to(HELP).as_posix() for page in HELP.rglob("*.md")}
    assert pages == {f"{schema.node_id}{ending}" for schema in SCHEMAS for ending in (".md", "/zh.md")}
    shown = {name for page in HELP.rglob("*.md") for name in re.findall(r"\((images/.+?)\)", page.read_text("utf-8"))}
    assert shown == {picture.relative_to(HELP).as_posix() for picture in (HELP / "images").iterdir()}


def test_docs_list_every_node_with_its_name_and_page():
    nodes = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(.*?)\]\(\.\./web/docs/(\w+)\.md\) \| `(\w+)` \| .", nodes, re.MULTILINE)
    assert sorted(listed) == sorted((schema.display_name, schema.node_id, schema.node_id) for schema in SCHEMAS)


def test_readme_lists_every_workflow():
    section = README.partition("\n## Workflows\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(.*?)` \| .", section, re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def test_readme_is_short_and_opens_with_a_picture_of_results():
    assert len(README.split()) <= README_WORDS
    opening = README.partition("\n## ")[0]
    assert re.search(r"^!\[.+\]\(docs/[\w-]+\.jpg\)$", opening, re.MULTILINE)
    assert re.findall(r"^(\d)\. ", opening, re.MULTILINE) == ["1", "2", "3"]


def anchors(page: str) -> set[str]:
    """What links to the headings of a Markdown page end with."""
    titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https://)([^)]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target


@cache
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
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(.*?)`(?: \(in .*?\))? \|", page, re.MULTILINE)


@pytest.mark.parametrize("message", quoted_messages())
def test_messages_that_troubleshooting_quotes_are_the_packs_own(message):
    said = messages()
    parts = [part for part in message.split("...") if part]
    assert parts
    assert not [part for part in parts if part not in said]
