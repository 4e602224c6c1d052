"""A real ComfyUI server with this pack, as a process, and what a client asks of it: upload, run, pictures."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import websocket

from comfy_client import Client, Prompt, PromptError, ServerError
from setup_host import PACK, ROOT
from setup_steps import link_folder

PACKS = {PACK: ROOT, "tiny_pack": ROOT / "tools" / "tiny_pack"}
OPTIONS = ("--cpu", "--fp32-unet", "--fp32-text-enc")
START_SECONDS = 180

OnProgress = Callable[[str, float, float], None]


class LiveServer(Client):
    """ComfyUI on a free port with models, input, output and custom_nodes of its own: no other pack is in it.

    with LiveServer(comfyui) as server:
        outputs = server.run(prompt)

    Files that prompts load go into server.models, at any time. Raises ServerError if ComfyUI or a pack does not load.
    """

    def __init__(self, comfyui: Path, options: Sequence[str] = OPTIONS, packs: dict[str, Path] = PACKS):
        self.comfyui = comfyui
        self.options = options
        self.packs = packs

    def __enter__(self) -> "LiveServer":
        self._temporary = tempfile.TemporaryDirectory(prefix="mm-diff-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self.models = self.folder / "models"
        for name in ("models", "input", "output", "custom_nodes", "user"):
            (self.folder / name).mkdir()
        for name, pack in self.packs.items():
            link_folder(pack, self.folder / "custom_nodes" / name)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        with self.log.open("wb") as log:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            self.process = subprocess.Popen(
                self._command(), cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._temporary.cleanup()

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def run(self, prompt: Prompt, on_progress: OnProgress | None = None, timeout: float = 600) -> dict[str, Any]:
        """Runs an API-format prompt to its end; returns {node id: what the node shows}.

        on_progress gets (node id, steps done, steps in all). Raises PromptError, ServerError, TimeoutError.
        """
        client = uuid.uuid4().hex
        where = f"ws://127.0.0.1:{self.port}/ws?clientId={client}"
        channel = websocket.create_connection(where, timeout=START_SECONDS)
        channel.settimeout(1)
        try:
            prompt_id = self.queue(prompt, client)
            self._follow(channel, prompt_id, on_progress, time.monotonic() + timeout)
        finally:
            channel.close()
        return self.history(prompt_id)["outputs"]

    def _command(self) -> list[str | Path]:
        place = ["--port", str(self.port), "--base-directory", self.folder, "--database-url", "sqlite:///:memory:"]
        quiet = ["--disable-auto-launch", "--disable-api-nodes"]
        return [sys.executable, self.comfyui / "main.py", *place, *quiet, *self.options]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self.process.poll() is not None:
                raise ServerError(f"ComfyUI ended with exit status {self.process.returncode}:\n{self._log_tail()}")
            try:
                self.ask("/system_stats")
                break
            except ServerError:
                if time.monotonic() > deadline:
                    raise ServerError(f"ComfyUI did not answer within {START_SECONDS} s:\n{self._log_tail()}") from None
                time.sleep(0.2)
        log = self.log.read_text(errors="replace")
        if "(IMPORT FAILED)" in log:
            raise ServerError(f"ComfyUI could not load a pack:\n{log[log.find('Traceback') :][:4000]}")

    def _log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _follow(
        self, channel: websocket.WebSocket, prompt_id: str, on_progress: OnProgress | None, deadline: float
    ) -> None:
        failure = None
        while True:
            kind, data = self._next_event(channel, deadline)
            if data.get("prompt_id") != prompt_id:
                continue
            if kind in ("execution_error", "execution_interrupted"):
                failure = PromptError.of_event(kind, data)
            elif kind == "progress_state" and on_progress:
                for node_id, state in data["nodes"].items():
                    if state["state"] == "running":
                        on_progress(node_id, state["value"], state["max"])
            elif kind == "executing" and data["node"] is None:  # sent last, when the history has the prompt
                if failure:
                    raise failure
                return

    def _next_event(self, channel: websocket.WebSocket, deadline: float) -> tuple[str, dict[str, Any]]:
        while time.monotonic() < deadline:
            try:
                received = channel.recv()
            except websocket.WebSocketTimeoutException:
                continue
            except (websocket.WebSocketException, OSError) as error:
                raise ServerError(f"ComfyUI ended while running a prompt ({error}):\n{self._log_tail()}") from None
            if isinstance(received, str):  # bytes are preview pictures
                event = json.loads(received)
                return event["type"], event["data"]
        raise TimeoutError(f"The prompt did not end in the time given:\n{self._log_tail()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
