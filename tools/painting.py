"""Pictures of prompts x subjects x seeds, painted by a running ComfyUI with a workflow of the user's."""

from __future__ import annotations

import copy
import hashlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdiff_model.evaluation.cases import BETWEEN
from mmdiff_model.files import write_whole
from workflow_api import to_api

TRIGGER = "<|subj|>"
TEXT_NODES = ("MMDiffApply", "MMDiffTextEncode")
SEEDS = ("seed", "noise_seed")
ENCODER, FILES = "MMDiffEncodeSubject", ("LoadImage", "LoadImageMask")
FOLLOWED = {ENCODER: ("images",), "MMDiffSubjectRegion": ("subject",)}
PLAN_FILE = "plan.json"
POLL_SECONDS = 0.5

Prompt = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """One picture: its file below the folder, its text with triggers and without, its subjects and its seed."""

    name: str
    text: str
    plain: str
    subjects: tuple[str, ...]
    seed: int


def plan(
    subjects: Sequence[tuple[str, ...]],
    words: dict[str, str],
    prompts: Callable[[tuple[str, ...]], Sequence[str]],
    seeds: int,
) -> Iterator[Work]:
    """Every set of subjects with every prompt of theirs, whose {} are the class words in order, and every seed.

    Raises ValueError on a prompt with another number of {} than subjects.
    """
    for named in subjects:
        for number, prompt in enumerate(prompts(named)):
            if prompt.count("{}") != len(named):
                raise ValueError(
                    f"prompts: '{prompt}' has {prompt.count('{}')} places {{}} for a class word, and "
                    f"{BETWEEN.join(named)} needs {len(named)}."
                )
            own = [words[subject] for subject in named]
            text, plain = filled_in(prompt, [word + TRIGGER for word in own]), filled_in(prompt, own)
            for seed in range(1, seeds + 1):
                yield Work(f"{BETWEEN.join(named)}/{number:03}_{seed:02}.png", text, plain, named, seed)


def filled_in(prompt: str, words: Sequence[str]) -> str:
    """The prompt with the words at its {}, whatever other braces it has."""
    first, *rest = prompt.split("{}")
    return first + "".join(word + text for word, text in zip(words, rest, strict=True))


class ServerError(RuntimeError):
    """The server does not answer, refused a prompt, or failed in it."""


@dataclass(frozen=True)
class Server:
    """A running ComfyUI."""

    url: str

    def object_info(self) -> dict[str, Any]:
        return json.loads(self._ask("/object_info"))

    def upload(self, photo: Path) -> str:
        """Puts a photo into the input folder under a name made from its content -> the name that Load Image takes."""
        content, boundary = photo.read_bytes(), uuid.uuid4().hex
        name = hashlib.sha256(content).hexdigest()[:16] + photo.suffix.lower()
        fields = {"overwrite": "true", "subfolder": "mmdiff_evaluation"}
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
            for key, value in fields.items()
        ]
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = "".join(parts).encode() + head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        answer = json.loads(self._ask("/upload/image", body, f"multipart/form-data; boundary={boundary}"))
        return "/".join(filter(None, (answer["subfolder"], answer["name"])))

    def paint(self, prompt: Prompt) -> bytes:
        """Runs an API-format prompt -> the one picture that its Save Image nodes give. Raises ServerError."""
        prompt_id = json.loads(self._ask("/prompt", json.dumps({"prompt": prompt}).encode()))["prompt_id"]
        done = self._wait(prompt_id)
        if done["status"]["status_str"] != "success":
            errors = [
                data
                for kind, data in done["status"]["messages"]
                if kind in ("execution_error", "execution_interrupted")
            ]
            text = errors[-1].get("exception_message", "it was interrupted").strip() if errors else "it failed"
            raise ServerError(f"server: the workflow failed at node {errors[-1]['node_id'] if errors else '?'}: {text}")
        images = [
            image
            for output in done["outputs"].values()
            for image in output.get("images", [])
            if image["type"] == "output"
        ]
        if len(images) != 1:
            raise ServerError(
                f"workflow: it saves {len(images)} pictures for a seed, one is needed. Keep one Save Image, and set "
                "the batch size to 1: --seeds gives more pictures."
            )
        return self._ask(f"/view?{urllib.parse.urlencode(images[0])}")

    def _wait(self, prompt_id: str) -> dict[str, Any]:
        while True:
            queue = json.loads(self._ask("/queue"))  # before the history, which a prompt enters as it leaves the queue
            if done := json.loads(self._ask(f"/history/{prompt_id}")).get(prompt_id):
                return done
            if prompt_id not in {item[1] for items in queue.values() for item in items}:
                raise ServerError(
                    "server: it no longer knows the prompt; was it restarted? Run the same command again."
                )
            time.sleep(POLL_SECONDS)

    def _ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        request = urllib.request.Request(self.url.rstrip("/") + path, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise ServerError(f"server: {self.url} refused {path.split('?')[0]}: {refusal(error)}") from error
        except (OSError, ValueError) as error:
            raise ServerError(
                f"server: {self.url} does not answer ({error}). Start ComfyUI, and run the same command again."
            ) from error


def refusal(error: urllib.error.HTTPError) -> str:
    """What ComfyUI says of a prompt that it refuses, node by node."""
    try:
        answer = json.loads(error.read())
        nodes = [
            f"node {number} ({node['class_type']}): {problem['message']}: {problem['details']}"
            for number, node in answer["node_errors"].items()
            for problem in node["errors"]
        ]
        return "; ".join(nodes) or answer["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"


@dataclass(frozen=True)
class Workflow:
    """An API-format prompt with one MM-Diff text; `photos` are the Load Image nodes of each of its subjects."""

    prompt: Prompt
    text: str
    photos: tuple[tuple[str, ...], ...]

    @classmethod
    def read(cls, path: Path, server: Server) -> Workflow:
        """A workflow as the front end saves or exports it. Raises ValueError where a part is missing."""
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"workflow: {path} cannot be read: {error}.") from error
        prompt = to_api(saved, server.object_info()) if "nodes" in saved else saved
        texts = [number for number, node in prompt.items() if node["class_type"] in TEXT_NODES]
        if len(texts) != 1:
            raise ValueError(f"workflow: it has {len(texts)} of {' or '.join(TEXT_NODES)}, one is needed.")
        inputs = prompt[texts[0]]["inputs"]
        sockets = sorted(
            (name for name in inputs if name.startswith("subjects.")), key=lambda name: int(name.split("_")[-1])
        )
        photos = tuple(tuple(load_images(prompt, inputs[name][0])) for name in sockets)
        if not photos or not all(photos):
            raise ValueError("workflow: each subject of its text must come from a Load Image.")
        if not isinstance(inputs["positive"], str):
            raise ValueError("workflow: the positive text must be written in the node itself, not linked to it.")
        return cls(prompt, texts[0], photos)

    def fill(self, work: Work, photos: Sequence[str]) -> Prompt:
        """The prompt of one picture: its text, the uploaded photo of each subject, and its seed in every node."""
        filled = copy.deepcopy(self.prompt)
        filled[self.text]["inputs"]["positive"] = work.text
        for nodes, photo in zip(self.photos, photos, strict=True):
            for number in nodes:
                filled[number]["inputs"]["image"] = photo
        for node in filled.values():
            node["inputs"] |= {name: work.seed for name in SEEDS if isinstance(node["inputs"].get(name), int)}
        return filled


def load_images(prompt: Prompt, number: str) -> Iterator[str]:
    """The Load Image nodes that a subject's photos come from. Raises ValueError: its masks are of fixed photos."""
    photos = [found for found in above(prompt, number) if prompt[found]["class_type"] == "LoadImage"]
    for encoder in above(prompt, number):
        masks = prompt[encoder]["inputs"].get("masks") if prompt[encoder]["class_type"] == ENCODER else None
        fixed = [found for found in above(prompt, masks[0]) if prompt[found]["class_type"] in FILES] if masks else []
        if set(fixed) - set(photos):
            raise ValueError(
                f"workflow: the masks of node {encoder} come from a file of their own, which fits no other photo. Take "
                "them from the photo's own Load Image or from a node that finds them, or disconnect them."
            )
    yield from photos


def above(prompt: Prompt, number: str) -> list[str]:
    """A node and those it comes from; of a subject's nodes only by its photos, not by its masks and models."""
    seen: dict[str, None] = {}
    left = [number]
    while left:
        if (number := left.pop()) in seen:
            continue
        seen[number] = None
        inputs = prompt[number]["inputs"]
        followed = FOLLOWED.get(prompt[number]["class_type"], inputs)
        left += [inputs[name][0] for name in followed if isinstance(inputs.get(name), list)]
    return list(seen)


def paint_all(
    folder: Path,
    works: Sequence[Work],
    workflow: Workflow,
    references: dict[str, list[Path]],
    server: Server,
    say: Callable[[str], None],
) -> None:
    """Paints what the folder lacks, from the first photo of each subject. A picture's prompt lies beside it.

    Raises ValueError: another plan has painted here, or another number of subjects. ServerError, OSError: the same
    call goes on.
    """
    for work in works:
        if len(work.subjects) != len(workflow.photos):
            raise ValueError(
                f"workflow: it has {len(workflow.photos)} subject(s), and {BETWEEN.join(work.subjects)} needs "
                f"{len(work.subjects)}. Choose another workflow, or other --subjects."
            )
    check_plan(folder, workflow)
    missing = [work for work in works if not is_painted(folder, work)]
    if len(missing) < len(works):
        say(f"{len(works) - len(missing)} of {len(works)} pictures were painted before.")
    uploaded: dict[str, str] = {}
    start = time.monotonic()
    for done, work in enumerate(missing, start=1):
        for subject in work.subjects:
            if subject not in uploaded:
                uploaded[subject] = server.upload(references[subject][0])
        picture = server.paint(workflow.fill(work, [uploaded[subject] for subject in work.subjects]))
        path = folder / work.name
        write_whole(
            path.with_suffix(".txt"), lambda partial, work=work: partial.write_text(work.plain, encoding="utf-8")
        )
        write_whole(path, lambda partial, picture=picture: partial.write_bytes(picture))
        seconds = (time.monotonic() - start) / done
        left = round(seconds * (len(missing) - done))
        say(f"painted {done} of {len(missing)}: {work.name}, {seconds:.1f} s each, {left // 60}:{left % 60:02} left")


def is_painted(folder: Path, work: Work) -> bool:
    """Raises ValueError where another prompt's picture has the name."""
    path = folder / work.name
    text = path.with_suffix(".txt")
    if not (path.is_file() and text.is_file()):
        return False
    if (found := text.read_text(encoding="utf-8")) != work.plain:
        raise ValueError(
            f"pictures: {path} was painted for '{found}', not for '{work.plain}'. Choose another --pictures folder for "
            "other prompts."
        )
    return True


def check_plan(folder: Path, workflow: Workflow) -> None:
    """Raises ValueError where the folder's pictures come from another workflow."""
    path = folder / PLAN_FILE
    digest = hashlib.sha256(json.dumps(workflow.prompt, sort_keys=True).encode()).hexdigest()
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["workflow"] != digest:
        raise ValueError(
            f"pictures: {folder} was painted with another workflow or other settings of it. Choose another --pictures "
            f"folder, or delete {path} to let both stand beside each other."
        )
    write_whole(path, lambda partial: partial.write_text(json.dumps({"workflow": digest}), encoding="utf-8"))
