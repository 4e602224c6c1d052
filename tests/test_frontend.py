"""The shipped workflows in ComfyUI's own front end, where a browser is installed: nothing is missing or lost."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from workflow_api import to_api

pytest_plugins = ["live_fixtures"]
pytestmark = pytest.mark.live

WORKFLOWS = sorted((Path(__file__).resolve().parent.parent / "workflows").glob("*.json"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types.MMDiffApply"
START_MILLISECONDS = 60_000
OPEN = """async (workflow) => {
    await window.app.loadGraphData(workflow)
    const known = window.LiteGraph.registered_node_types
    const missing = window.app.graph.nodes.map((node) => node.type).filter((type) => !known[type])
    const { output, workflow: saved } = await window.app.graphToPrompt()
    return { missing, output, saved: JSON.stringify(saved) }
}"""


@pytest.fixture(scope="module")
def page(server) -> Iterator[Page]:
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=ARGUMENTS)
        opened = browser.new_page()
        opened.goto(server.url)
        opened.wait_for_function(READY, timeout=START_MILLISECONDS)
        yield opened
        browser.close()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_opens_and_posts_what_to_api_makes(path, page, object_info):
    workflow = json.loads(path.read_text())
    opened = page.evaluate(OPEN, workflow)
    assert not opened["missing"]
    saved = json.loads(opened["saved"])
    assert [node["type"] for node in saved["nodes"]] == [node["type"] for node in workflow["nodes"]]
    assert saved["links"] == workflow["links"]
    posted = {
        node_id: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for node_id, node in opened["output"].items()
    }
    assert posted == to_api(workflow, object_info)
