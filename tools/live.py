"""A real ComfyUI server with this pack, as a process, and what a client asks of it: upload, run, pictures."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import websocket

from setup_host import PACK, ROOT
from setup_steps import link_folder

PACKS = {PACK: ROOT, "tiny_pack": ROOT / "tools" / "tiny_pack"}
OPTIONS = ("--cpu", "--fp32-unet", "--fp32-text-enc")
START_SECONDS = 180

Prompt = dict[str, dict[str, Any]]
OnProgress = Callable[[str, float, float], None]


class ServerError(RuntimeError):
    """The server did not start or ended; the text closes with its last lines."""


class PromptError(RuntimeError):
    """A prompt that was refused or failed, with what the front end shows: node id and type, kind, message."""

    def __init__(self, node_id: str, node_type: str, kind: str, message: str):
        super().__init__(f"node {node_id} ({node_type}): {kind}: {message}")
        self.node_id = node_id
        self.node_type = node_type
        self.kind = kind
        self.message = message


class LiveServer:
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

    def object_info(self) -> dict[str, Any]:
        """Every node the server knows: {node id: {"input": ..., "output": ...}}."""
        return json.loads(self._get("/object_info"))

    def upload_image(self, path: Path) -> str:
        """Puts a picture into the input folder; returns the name that Load Image takes."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n\r\n'
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        return json.loads(self._post("/upload/image", body, f"multipart/form-data; boundary={boundary}"))["name"]

    def run(self, prompt: Prompt, on_progress: OnProgress | None = None, timeout: float = 600) -> dict[str, Any]:
        """Runs an API-format prompt to its end; returns {node id: what the node shows}.

        on_progress gets (node id, steps done, steps in all). Raises PromptError, ServerError, TimeoutError.
        """
        client = uuid.uuid4().hex
        channel = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=1)
        try:
            prompt_id = self._queue(prompt, client)
            self._follow(channel, prompt_id, on_progress, time.monotonic() + timeout)
        finally:
            channel.close()
        return json.loads(self._get(f"/history/{prompt_id}"))[prompt_id]["outputs"]

    def images(self, outputs: dict[str, Any], node_id: str | None = None) -> list[bytes]:
        """The pictures (files as stored, usually PNG) in what run returned: of all nodes, or of one."""
        shown = outputs.values() if node_id is None else [outputs[node_id]]
        files = [image for output in shown for image in output.get("images", [])]
        return [self._get(f"/view?{urllib.parse.urlencode(image)}") for image in files]

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Posts JSON to a route of ComfyUI, such as /interrupt."""
        self._post(path, json.dumps(body).encode(), "application/json")

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
                self._get("/system_stats")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise ServerError(f"ComfyUI did not answer within {START_SECONDS} s:\n{self._log_tail()}") from None
                time.sleep(0.2)
        log = self.log.read_text(errors="replace")
        if "(IMPORT FAILED)" in log:
            raise ServerError(f"ComfyUI could not load a pack:\n{log[log.find('Traceback') :][:4000]}")

    def _log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _queue(self, prompt: Prompt, client: str) -> str:
        body = json.dumps({"prompt": prompt, "client_id": client}).encode()
        try:
            answer = json.loads(self._post("/prompt", body, "application/json"))
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
        for node_id, node in answer["node_errors"].items():
            first = node["errors"][0]
            said = f"{first['message']}: {first['details']}"
            if first["type"] == "custom_validation_failed":  # the node's own sentence, after the input's name
                said = first["details"].removeprefix(f"{first['extra_info']['input_name']} - ")
            raise PromptError(node_id, node["class_type"], first["type"], said)
        if "error" in answer:
            error = answer["error"]
            node_id = error["extra_info"].get("node_id", "none")
            node_type = prompt.get(node_id, {}).get("class_type", "none")
            raise PromptError(node_id, node_type, error["type"], f"{error['message']}: {error['details']}")
        return answer["prompt_id"]

    def _follow(
        self, channel: websocket.WebSocket, prompt_id: str, on_progress: OnProgress | None, deadline: float
    ) -> None:
        failure = None
        while True:
            kind, data = self._next_event(channel, deadline)
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "execution_error":
                failure = PromptError(
                    data["node_id"], data["node_type"], data["exception_type"], data["exception_message"].strip()
                )
            elif kind == "execution_interrupted":
                failure = PromptError(data["node_id"], data["node_type"], kind, "The run was cancelled.")
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

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def _post(self, path: str, body: bytes, content_type: str) -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
