"""What a client asks of a running ComfyUI: to keep a picture, to run a prompt, to give what it shows."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

SECONDS = 60

Prompt = dict[str, dict[str, Any]]


class ServerError(RuntimeError):
    """The server does not answer, or refuses a request."""


class PromptError(RuntimeError):
    """A prompt that was refused or failed, with what the front end shows: node id and type, kind, message."""

    def __init__(self, node_id: str, node_type: str, kind: str, message: str):
        super().__init__(f"node {node_id} ({node_type}): {kind}: {message}")
        self.node_id = node_id
        self.node_type = node_type
        self.kind = kind
        self.message = message

    @classmethod
    def of_event(cls, kind: str, data: dict[str, Any]) -> PromptError:
        """From the event of a run that failed or was cancelled."""
        if kind == "execution_interrupted":
            return cls(data["node_id"], data["node_type"], kind, "The run was cancelled.")
        return cls(data["node_id"], data["node_type"], data["exception_type"], data["exception_message"].strip())


class Client:
    """A running ComfyUI at an address. Every call raises ServerError where it does not answer."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def object_info(self) -> dict[str, Any]:
        """Every node the server knows: {node id: {"input": ..., "output": ...}}."""
        return json.loads(self.ask("/object_info"))

    def upload(self, photo: Path, name: str | None = None, **fields: str) -> str:
        """Puts a picture into the input folder -> the name that Load Image takes. fields: subfolder, overwrite."""
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
            for key, value in fields.items()
        ]
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name or photo.name}"\r\n\r\n'
        )
        body = "".join(parts).encode() + photo.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        answer = json.loads(self.ask("/upload/image", body, f"multipart/form-data; boundary={boundary}"))
        return "/".join(filter(None, (answer["subfolder"], answer["name"])))

    def queue(self, prompt: Prompt, client_id: str = "") -> str:
        """Queues an API-format prompt -> its id. Raises PromptError where it is refused."""
        body = json.dumps({"prompt": prompt, "client_id": client_id}).encode()
        try:
            answer = json.loads(self._send("/prompt", body, "application/json"))
        except urllib.error.HTTPError as error:
            answer = self._answer("/prompt", error)
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

    def waiting(self) -> set[str]:
        """The ids of the prompts that are queued or running."""
        return {item[1] for items in json.loads(self.ask("/queue")).values() for item in items}

    def history(self, prompt_id: str) -> dict[str, Any]:
        """What is kept of a prompt that has ended, its status and outputs; nothing before."""
        return json.loads(self.ask(f"/history/{prompt_id}")).get(prompt_id, {})

    def images(self, outputs: dict[str, Any], node_id: str | None = None) -> list[bytes]:
        """The pictures (files as stored, usually PNG) in a run's outputs: of all nodes, or of one."""
        shown = outputs.values() if node_id is None else [outputs[node_id]]
        return [self.view(image) for output in shown for image in output.get("images", [])]

    def view(self, image: dict[str, str]) -> bytes:
        """A file that a node shows, as stored."""
        return self.ask(f"/view?{urllib.parse.urlencode(image)}")

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Posts JSON to a route of ComfyUI, such as /interrupt."""
        self.ask(path, json.dumps(body).encode())

    def ask(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        """GET, or POST where there is a body -> the answer."""
        try:
            return self._send(path, body, content_type)
        except urllib.error.HTTPError as error:
            raise self._refused(path, error) from error

    def _send(self, path: str, body: bytes | None, content_type: str) -> bytes:
        try:
            request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type})
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return answer.read()
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError) as error:
            raise ServerError(
                f"server: {self.url} does not answer ({error}). Start ComfyUI, and run the same command again."
            ) from error

    def _answer(self, path: str, error: urllib.error.HTTPError) -> dict[str, Any]:
        """What ComfyUI says of a prompt that it refuses."""
        try:
            answer = json.loads(error.read())
            return {"node_errors": {}, **answer} if "error" in answer else answer
        except (ValueError, TypeError):
            raise self._refused(path, error) from error

    def _refused(self, path: str, error: urllib.error.HTTPError) -> ServerError:
        return ServerError(f"server: {self.url} refused {path.split('?')[0]}: {error.code} {error.reason}")
