"""The shipped workflows in ComfyUI's own front end, where a browser is installed: nothing is missing or lost."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, TimeoutError, sync_playwright

from front_end import BROWSERS, READY, START_MILLISECONDS, find_browser, launch, open_page
from workflow_api import to_api

pytest_plugins = ["live_fixtures"]
pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parent.parent
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
DEMOS = [path for path in WORKFLOWS if path.stem.startswith("MM-Diff Demo ")]
PANEL_MILLISECONDS = 5_000
OPEN = """async (workflow) => {
    await window.app.loadGraphData(workflow)
    const known = window.LiteGraph.registered_node_types
    const missing = window.app.graph.nodes.map((node) => node.type).filter((type) => !known[type])
    const { output, workflow: saved } = await window.app.graphToPrompt()
    return { missing, output, saved: JSON.stringify(saved) }
}"""


RUN = """async (seconds) => {
    const ends = ['execution_success', 'execution_error', 'execution_interrupted']
    const end = new Promise((resolve) => {
        for (const kind of ends)
            window.app.api.addEventListener(kind, (event) => resolve({ kind, ...event.detail }), { once: true })
        setTimeout(() => resolve({ kind: `nothing in ${seconds} s` }), 1000 * seconds)
    })
    await window.app.queuePrompt(0, 1)
    return await end
}"""
RUN_SECONDS = 300
# whether the note, the first thing to read, begins beside the menus and not under them
NOTE_IS_FREE = """() => {
    const { graph, canvas } = window.app
    const { pos } = graph.nodes.find((node) => node.type === 'MarkdownNote')
    const { offset, scale } = canvas.ds
    const [x, y] = [pos[0], pos[1] - window.LiteGraph.NODE_TITLE_HEIGHT].map((at, i) => (at + offset[i]) * scale + 1)
    return document.elementFromPoint(x, y) === canvas.canvas
}"""
SIZES = "() => Object.fromEntries(window.app.graph.nodes.map((node) => [node.id, node.size.map(Math.round)]))"
PREVIEWS_MILLISECONDS = 1000


@pytest.fixture(scope="module")
def page(server, photos) -> Iterator[Page]:
    if find_browser() is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    with sync_playwright() as playwright:
        browser = launch(playwright)
        server.post("/settings", {"Comfy.TutorialCompleted": True})  # or a first visit's dialog lies over the page
        yield open_page(browser, server.url)
        browser.close()


@pytest.fixture(scope="module")
def known(page, server) -> dict[str, Any]:
    """The nodes as the page knows them: with the files that were there when it opened."""
    return server.object_info()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_opens_and_posts_what_to_api_makes(path, page, known):
    workflow = json.loads(path.read_text())
    opened = page.evaluate(OPEN, workflow)
    assert not opened["missing"]
    assert page.evaluate(NOTE_IS_FREE)
    assert page.evaluate(SIZES) == {str(node["id"]): node["size"] for node in workflow["nodes"]}
    saved = json.loads(opened["saved"])
    assert [node["type"] for node in saved["nodes"]] == [node["type"] for node in workflow["nodes"]]
    assert saved["links"] == workflow["links"]
    posted = {
        node_id: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for node_id, node in opened["output"].items()
    }
    assert posted == to_api(workflow, known)


@pytest.mark.parametrize("path", DEMOS, ids=lambda path: path.stem)
def test_a_demo_runs_to_its_end(path, page, server):
    """As a newcomer has it: opened, and Run. No node grows over its neighbour when it shows pictures."""
    workflow = json.loads(path.read_text())
    page.evaluate(OPEN, workflow)
    end = page.evaluate(RUN, RUN_SECONDS)
    assert end["kind"] == "execution_success"
    assert server.images(server.history(end["prompt_id"])["outputs"])
    page.wait_for_timeout(PREVIEWS_MILLISECONDS)
    assert page.evaluate(SIZES) == {str(node["id"]): node["size"] for node in workflow["nodes"]}


def test_a_refused_prompt_is_told_in_its_own_words_until_the_next(page):
    """Once, not once for each input that the check has read."""
    workflow = json.loads(DEMOS[0].read_text())
    prompt = next(node["widgets_values"] for node in workflow["nodes"] if node["type"] == "MMDiffApply")
    prompt[0] = "a cat and a robot"
    page.evaluate(OPEN, workflow)
    page.evaluate("() => window.app.queuePrompt(0)")
    told = page.locator(".p-toast-message", has_text="Apply MM-Diff")
    told.first.wait_for()
    [said] = told.locator(".p-toast-detail").all_inner_texts()
    assert said.startswith('positive: there is no trigger in "a cat and a robot".')
    prompt[0] = "a cat<|subj|>, a robot<|subj|> and a man<|subj|>"
    page.evaluate(OPEN, workflow)
    assert told.count() == 1  # the graph is the same
    page.evaluate("() => window.app.queuePrompt(0)")
    page.locator(".p-toast-detail", has_text="there are more triggers than subjects").wait_for()
    told.filter(has_text="there is no trigger").wait_for(state="detached")
    page.evaluate(OPEN, json.loads(DEMOS[1].read_text()))
    told.first.wait_for(state="detached")


RUN_WITHOUT_TRIGGERS = """async () => {
    const { output, workflow } = await window.app.graphToPrompt()
    const [apply] = Object.values(output).filter((node) => node.class_type === 'MMDiffApply')
    output.words = { class_type: 'PrimitiveString', inputs: { value: 'a cat' } }
    apply.inputs.positive = ['words', 0]
    await window.app.api.queuePrompt(0, { output, workflow })
}"""


def test_what_a_run_ends_with_is_told_in_its_own_words(page):
    """A linked prompt, which cannot be read before."""
    page.evaluate(OPEN, json.loads(DEMOS[0].read_text()))
    page.evaluate(RUN_WITHOUT_TRIGGERS)
    told = page.locator(".p-toast-message", has_text="Apply MM-Diff")
    told.first.wait_for()
    [said] = told.locator(".p-toast-detail").all_inner_texts()
    assert said.startswith('positive: there is no trigger in "a cat".')
    page.evaluate(OPEN, json.loads(DEMOS[1].read_text()))
    told.first.wait_for(state="detached")


CROPS = """() => window.app.graph.nodes.filter((node) => node.type === 'MMDiffEncodeSubject')
    .every((node) => window.app.nodeOutputs[node.id]?.images?.length)"""


NOT_A_NUMBER = {
    "number": {"class_type": "PrimitiveFloat", "inputs": {"value": math.nan}},
    "show": {"class_type": "PreviewAny", "inputs": {"source": ["number", 0]}},
}


def test_crops_outlast_a_reload(page, server):
    """They are of the photos that the graph has: of others, nothing is shown. Another run of the server holds what is
    no JSON."""
    server.run(NOT_A_NUMBER)
    workflow = json.loads(DEMOS[1].read_text())
    settings = {node["type"]: node["widgets_values"] for node in workflow["nodes"]}
    settings["KSampler"][2] = 1  # step
    page.evaluate(OPEN, workflow)
    assert page.evaluate(RUN, RUN_SECONDS)["kind"] == "execution_success"
    page.reload()
    page.wait_for_function(READY, timeout=START_MILLISECONDS)
    page.evaluate(OPEN, workflow)
    page.wait_for_function(CROPS)
    settings["MMDiffDemoCharacter"][1] += 1  # seed
    page.evaluate(OPEN, workflow)
    page.wait_for_timeout(2000)
    assert not page.evaluate(CROPS)


LANGUAGE = "(code) => window.app.extensionManager.setting.set('Comfy.Locale', code)"
SELECT = """(type) => {
    const { graph, canvas } = window.app
    graph.clear()
    const node = window.LiteGraph.createNode(type)
    graph.add(node)
    canvas.selectNode(node)
    canvas.centerOnNode(node)
}"""
SHOWS = "(title) => document.querySelector('.node-help-content h1')?.textContent === title"
LACKS = """async () => {
    const content = document.querySelector('.node-help-content')
    const pictures = [...content.querySelectorAll('img')]
    await Promise.allSettled(pictures.map((picture) => picture.decode()))
    const edge = content.parentElement.getBoundingClientRect().right + 1
    const cut = [...content.querySelectorAll('*')].filter((part) => part.getBoundingClientRect().right > edge)
    const missing = pictures.filter((picture) => !picture.naturalWidth)
    return [...cut.map((part) => part.textContent), ...missing.map((picture) => picture.src)]
}"""


@pytest.mark.parametrize(("language", "shown"), [("en", "en"), ("zh", "zh"), ("fr", "en")])
def test_help_is_shown_whole_in_the_readers_language(language, shown, page, object_info):
    """Languages without pages of their own get the English ones."""
    titles = json.loads((ROOT / "locales" / shown / "nodeDefs.json").read_text(encoding="utf-8"))
    page.evaluate(LANGUAGE, language)
    page.reload()
    page.wait_for_function(READY, timeout=START_MILLISECONDS)
    try:
        for node_id in sorted(titles.keys() & object_info):
            page.evaluate(SELECT, node_id)
            title = titles[node_id]["display_name"]
            try:
                page.wait_for_function(SHOWS, arg=title, timeout=PANEL_MILLISECONDS)
            except TimeoutError:  # the panel is not open yet; a page just loaded does not notice a first selection
                page.evaluate(SELECT, node_id)
                page.get_by_test_id("info-button").click()
                page.wait_for_function(SHOWS, arg=title)
            assert not page.evaluate(LACKS), node_id
    finally:
        page.evaluate(LANGUAGE, "en")
        page.reload()
        page.wait_for_function(READY, timeout=START_MILLISECONDS)


PLACE = """async (blueprint) => {
    await window.app.loadGraphData(blueprint)
    const [node] = window.app.graph.nodes
    const { output } = await window.app.graphToPrompt()
    const widgets = Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.value]))
    return { output, widgets, inputs: node.inputs.map((input) => input.name) }
}"""


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_listed_and_is_one_node(path, server, page, object_info):
    """Its own inputs are all that is left to connect; its widgets reach the nodes inside."""
    listed = {entry["name"] for entry in json.loads(server.ask("/global_subgraphs")).values()}
    assert path.stem in listed
    blueprint = json.loads(path.read_text())
    placed = page.evaluate(PLACE, blueprint)
    inside = {key.rpartition(":")[2]: node for key, node in placed["output"].items()}
    for number, name in blueprint["nodes"][0]["properties"]["proxyWidgets"]:
        assert placed["widgets"][name] == inside[number]["inputs"][name]
    missing = {
        name
        for node in inside.values()
        for name, (kind, *_) in object_info[node["class_type"]]["input"]["required"].items()
        if name not in node["inputs"] and kind != "COMFY_AUTOGROW_V3"
    }
    connected = [name for name in placed["inputs"] if name not in placed["widgets"]]
    assert missing == {name.removesuffix("_1") for name in connected}


SHOWN = """async (workflow) => {
    await window.app.loadGraphData(workflow)
    const node = window.app.graph.nodes.find((node) => node.type === "MMDiffApply")
    const shown = (slot) => slot.label || slot.localized_name || slot.name
    const added = window.LiteGraph.createNode("MMDiffApply")
    await new Promise((resolve) => setTimeout(resolve))
    const { workflow: saved } = await window.app.graphToPrompt()
    return {
        opened: Object.fromEntries(node.inputs.map((input) => [input.name, shown(input)])),
        added: Object.fromEntries(added.inputs.map((input) => [input.name, shown(input)])),
        labels: saved.nodes.find((node) => node.type === "MMDiffApply").inputs.map((input) => input.label ?? null),
    }
}"""


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_socket_is_called_in_the_browsers_language(language, page, server):
    """Growing sockets too, of a node that was added and of a saved one, which keeps no name of this language."""
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    names = {key: given["name"] for key, given in texts["MMDiffApply"]["inputs"].items()}
    server.post("/settings", {"Comfy.Locale": language})
    opened = open_page(page.context.browser, server.url)
    server.post("/settings", {"Comfy.Locale": "en"})
    workflow = json.loads((ROOT / "workflows" / "MM-Diff SDXL, three people by name.json").read_text())
    shown = opened.evaluate(SHOWN, workflow)
    opened.close()
    for sockets in (shown["opened"], shown["added"]):
        assert sockets == {name: names[name.replace(".", "_")] for name in sockets}
    assert {"subjects.subject_1", "subjects.subject_3"} <= shown["opened"].keys()
    assert set(shown["labels"]) == {None}


SAVING = {
    "last_node_id": 2,
    "last_link_id": 1,
    "version": 0.4,
    "nodes": [
        {
            "id": 1,
            "type": "MMDiffLoader",
            "pos": [0, 0],
            "size": [320, 90],
            "outputs": [{"name": "mmdiff", "type": "MMDIFF", "links": [1]}],
            "widgets_values": ["tiny", False],
        },
        {
            "id": 2,
            "type": "MMDiffSaveCheckpoint",
            "pos": [400, 0],
            "size": [320, 90],
            "inputs": [{"name": "mmdiff", "type": "MMDIFF", "link": 1}],
            "widgets_values": ["shown"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "MMDIFF"]],
}
QUEUE = """async (workflow) => {
    await window.app.loadGraphData(workflow)
    const before = await window.app.graphToPrompt()
    await window.app.queuePrompt(0)
    return JSON.stringify(before)
}"""
SAYS = "() => window.app.graph.getNodeById(2).widgets.find((widget) => widget.name === 'says')?.value"


def test_a_saved_file_is_told_in_the_node(page, server):
    """The text is shown, and is no part of the workflow or the prompt."""
    before = json.loads(page.evaluate(QUEUE, SAVING))
    page.wait_for_function(SAYS, timeout=START_MILLISECONDS)
    saved = server.models / "mmdiff" / "shown.safetensors"
    assert page.evaluate(SAYS) == f"Saved {saved.name} to {saved.parent}" and saved.is_file()
    after = page.evaluate("() => window.app.graphToPrompt().then(JSON.stringify)")
    assert json.loads(after)["output"] == before["output"]
    values = [[node["widgets_values"] for node in found["workflow"]["nodes"]] for found in (before, json.loads(after))]
    assert values[0] == values[1]
    page.evaluate("() => window.app.graph.getNodeById(2).onExecuted({})")
    assert page.evaluate(SAYS) is None
