"""Takes the pictures of docs/walk.md: a new user's stations in ComfyUI's own front end, in a browser, for a person to
look at.

    python tools/walk.py FOLDER [--stations demo mistakes ...] [--nodes2] [--light] [--language zh]

It needs Chromium or Chrome. The station `photo` has small stand-ins for the four files, so what it paints is noise.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from front_end import READY, launch, open_page
from in_host import import_host, run_in_host
from setup_host import ROOT

VIEW = {"width": 1600, "height": 900}
SELECT = """(type) => {
    const { graph, canvas } = window.app
    canvas.selectNode(graph.nodes.find((node) => node.type === type))
}"""
DEMO, REPORT = "MM-Diff Demo 1, two characters (nothing to download)", "MM-Diff Demo 6, routing off and auto"
TRAIN, EVALUATE = "MM-Diff Demo 8, train a little", "MM-Diff Demo 9, evaluate"
PERSON = "MM-Diff SDXL, one person"
LARGE = {"CheckpointLoaderSimple": (0, 1, 2), "CLIPVisionLoader": (3,)}  # and the outputs of MMDiffTinyModels for them
RUN_SECONDS, SETTLE_SECONDS = 300, 2
Workflow = dict[str, Any]


@dataclass
class Walk:
    """A page of a live server, and the folder that its pictures go to."""

    page: Any
    server: Any
    folder: Path

    def look(self, name: str) -> None:
        time.sleep(SETTLE_SECONDS)
        self.page.screenshot(path=self.folder / f"{name}.png")
        print(self.folder / f"{name}.png", flush=True)

    def open(self, workflow: Workflow) -> None:
        self.page.evaluate("(workflow) => window.app.loadGraphData(workflow)", workflow)

    def run(self) -> None:
        """Presses Run and waits for the end, or for what the page says of a prompt that was refused."""
        before = self.ended()
        self.page.get_by_test_id("queue-button").click()
        deadline = time.monotonic() + RUN_SECONDS
        while self.ended() == before and time.monotonic() < deadline:
            time.sleep(1)
            if self.page.get_by_test_id("error-overlay").count():
                return

    def ended(self) -> int:
        return len(json.loads(self.server.ask("/history")))


def templates(walk: Walk) -> None:
    """They open by themselves, as this is a first visit."""
    walk.page.get_by_text("ComfyUI-MM-Diff", exact=True).first.click()
    walk.look("templates")
    walk.page.keyboard.press("Escape")
    walk.server.post("/settings", {"Comfy.TutorialCompleted": True})


def demo(walk: Walk) -> None:
    walk.open(template(DEMO))
    walk.look("demo-opened")
    walk.run()
    walk.look("demo-done")


def mistakes(walk: Walk) -> None:
    prompts = {
        "trigger": "a cat<|Subj|> and a robot<|subj|> standing in a park",
        "subject": "a cat<|subj|>, a robot<|subj|> and a dog<|subj|> in a park",
    }
    for name, prompt in prompts.items():
        walk.open(with_values(template(DEMO), "MMDiffApply", 0, prompt))
        walk.run()
        walk.look(f"mistake-{name}")
    walk.open(template(PERSON))
    walk.look("mistake-files")


def help_pages(walk: Walk) -> None:
    walk.open(template(REPORT))
    for kind in ("MMDiffApply", "MMDiffEncodeSubject", "MMDiffReport"):
        walk.page.evaluate(SELECT, kind)
        if not walk.page.locator(".node-help-content").count():
            walk.page.get_by_test_id("info-button").click()
        walk.look(f"help-{kind}")


def photo(walk: Walk) -> None:
    import skimage.data
    from PIL import Image

    from tiny_prompt import CHECKPOINT, write_tiny_models

    write_tiny_models(walk.server.models)
    pictures = {"face": Image.fromarray(skimage.data.astronaut()), "wall": Image.new("RGB", (320, 240), "navy")}
    for name, picture in pictures.items():
        picture.save(walk.folder / f"photo-{name}.png")
        walk.server.upload(walk.folder / f"photo-{name}.png")
    walk.page.reload()
    walk.page.wait_for_function(READY)
    workflow = with_values(with_tiny_models(template(PERSON)), "MMDiffLoader", 0, CHECKPOINT)
    for name in pictures:
        walk.open(with_values(workflow, "LoadImage", 0, f"photo-{name}.png"))
        walk.run()
        walk.look(f"photo-{name}")


def report(walk: Walk) -> None:
    walk.open(template(REPORT))
    walk.run()
    walk.look("report")


def training(walk: Walk) -> None:
    walk.open(template(TRAIN))
    walk.run()
    walk.look("training")


def evaluation(walk: Walk) -> None:
    walk.open(template(EVALUATE))
    walk.run()
    walk.look("evaluation")


def blueprints(walk: Walk) -> None:
    walk.page.evaluate("() => window.app.graph.clear()")
    walk.page.mouse.dblclick(VIEW["width"] / 2, VIEW["height"] / 2)
    walk.page.keyboard.type("MM-Diff Portrait", delay=30)
    walk.look("blueprint-search")
    walk.page.keyboard.press("Enter")
    walk.look("blueprint")


STATIONS: dict[str, Callable[[Walk], None]] = {
    function.__name__: function
    for function in (templates, demo, mistakes, help_pages, photo, report, training, evaluation, blueprints)
}


def template(name: str) -> Workflow:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def with_values(workflow: Workflow, kind: str, place: int, value: object) -> Workflow:
    changed = copy.deepcopy(workflow)
    for node in changed["nodes"]:
        if node["type"] == kind:
            node["widgets_values"][place : place + 1] = [value]
    return changed


def with_tiny_models(workflow: Workflow) -> Workflow:
    """The workflow of one person with one node of small models in place of the loaders of large ones."""
    loaders = {node["id"]: LARGE[node["type"]] for node in workflow["nodes"] if node["type"] in LARGE}
    kept = [node for node in workflow["nodes"] if node["id"] not in loaders]
    number = workflow["last_node_id"] + 1
    kinds = ("MODEL", "CLIP", "VAE", "CLIP_VISION")
    outputs = [{"name": kind, "type": kind, "links": []} for kind in kinds]
    for link in workflow["links"]:
        if link[1] in loaders:
            link[1:3] = number, loaders[link[1]][link[2]]
            outputs[link[2]]["links"].append(link[0])
    tiny = {"id": number, "type": "MMDiffTinyModels", "pos": [378, -160], "size": [280, 150], "outputs": outputs}
    latent, sampler = [128, 128, 1], ("KSampler", 2, 3)
    smaller = {**workflow, "last_node_id": number, "nodes": [*kept, {**tiny, "widgets_values": [20, "fixed"]}]}
    for place, value in enumerate(latent):
        smaller = with_values(smaller, "EmptyLatentImage", place, value)
    return with_values(smaller, *sampler)


def take(arguments: argparse.Namespace) -> None:
    comfyui = import_host("--cpu")
    from playwright.sync_api import sync_playwright

    from live import LiveServer

    arguments.folder.mkdir(parents=True, exist_ok=True)
    settings = {"Comfy.VueNodes.Enabled": arguments.nodes2, "Comfy.Locale": arguments.language}
    settings |= {"Comfy.ColorPalette": "light" if arguments.light else "dark"}
    with LiveServer(comfyui) as server, sync_playwright() as playwright:
        server.post("/settings", {**settings, "Comfy.TutorialCompleted": "templates" not in arguments.stations})
        browser = launch(playwright)
        page = open_page(browser, server.url, viewport=VIEW)
        for name in arguments.stations:
            STATIONS[name](Walk(page, server, arguments.folder))
        browser.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--stations", nargs="+", choices=STATIONS, default=list(STATIONS))
    parser.add_argument("--nodes2", action="store_true", help="Nodes 2.0 in place of classic nodes")
    parser.add_argument("--light", action="store_true", help="the light theme")
    parser.add_argument("--language", default="en")
    arguments = parser.parse_args()
    if (status := run_in_host(__file__)) is not None:
        return status
    take(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
