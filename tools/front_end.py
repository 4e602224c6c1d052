"""ComfyUI's own front end in a browser of this machine, for those who drive it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
# not as soon as there is a graph: the page still restores its last workflow into it
READY = """() => window.app?.extensionManager?.workflow.activeWorkflow && !window.app.extensionManager.spinner
    && window.LiteGraph.registered_node_types.MMDiffApply"""
START_MILLISECONDS = 60_000


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=find_browser(), args=ARGUMENTS)


def open_page(browser: Browser, url: str, **options) -> Page:
    """A page of a server, when it can be worked with."""
    page = browser.new_page(**options)
    page.goto(url)
    page.wait_for_function(READY, timeout=START_MILLISECONDS)
    return page
