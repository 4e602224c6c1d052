"""Pictures of prompts x subjects x seeds, painted by a running ComfyUI with a workflow of the user's."""

from __future__ import annotations

import copy
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from comfy_client import Client, Prompt, PromptError, ServerError
from mmdiff_model.evaluation.cases import BETWEEN
from mmdiff_model.files import write_whole
from painted import FILES, above, check_plan, digest, is_link, own_files
from workflow_api import to_api

TRIGGER = "<|subj|>"
TEXT_NODES = ("MMDiffApply", "MMDiffTextEncode")
SEEDS = ("seed", "noise_seed")
ENCODER = "MMDiffEncodeSubject"
FOLLOWED = {ENCODER: ("images",), "MMDiffSubjectRegion": ("subject",)}
# a node and those it comes from; of a subject's nodes only by its photos, not by its masks and models
origins = partial(above, followed=FOLLOWED)
POLL_SECONDS = 0.5


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


def paint(client: Client, prompt: Prompt) -> bytes:
    """Runs an API-format prompt -> the one picture that its Save Image nodes give. Raises ServerError."""
    try:
        outputs = wait(client, client.queue(prompt))
    except PromptError as error:
        raise ServerError(f"server: {client.url} did not paint: {error}") from error
    images = [image for output in outputs.values() for image in output.get("images", []) if image["type"] == "output"]
    if len(images) != 1:
        raise ServerError(
            f"workflow: it saves {len(images)} pictures for a seed, one is needed. Keep one Save Image, and set the "
            "batch size to 1: --seeds gives more pictures."
        )
    return client.view(images[0])


def wait(client: Client, prompt_id: str) -> dict[str, Any]:
    """What a queued prompt's nodes show in the end. Raises PromptError, ServerError."""
    while True:
        waiting = client.waiting()  # before the history, which a prompt enters as it leaves the queue
        if done := client.history(prompt_id):
            for kind, data in done["status"]["messages"]:
                if kind in ("execution_error", "execution_interrupted"):
                    raise PromptError.of_event(kind, data)
            return done["outputs"]
        if prompt_id not in waiting:
            raise ServerError("server: it no longer knows the prompt; was it restarted? Run the same command again.")
        time.sleep(POLL_SECONDS)


def upload(client: Client, photo: Path) -> str:
    """Puts a photo into the input folder under a name made from its content -> the name that Load Image takes."""
    name = digest(photo.read_bytes()) + photo.suffix.lower()
    return client.upload(photo, name, subfolder="mmdiff_evaluation", overwrite="true")


@dataclass(frozen=True)
class Workflow:
    """An API-format prompt with one MM-Diff text; `photos` are the Load Image nodes of each of its subjects."""

    prompt: Prompt
    text: str
    photos: tuple[tuple[str, ...], ...]

    @classmethod
    def read(cls, path: Path, client: Client) -> Workflow:
        """A workflow as the front end saves or exports it. Raises ValueError where a part is missing."""
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"workflow: {path} cannot be read: {error}.") from error
        prompt = to_api(saved, client.object_info()) if isinstance(saved, dict) and "nodes" in saved else saved
        if not is_prompt(prompt):
            raise ValueError(f"workflow: {path} is no workflow. Save or export one in ComfyUI.")
        texts = [number for number, node in prompt.items() if node["class_type"] in TEXT_NODES]
        if len(texts) != 1:
            raise ValueError(f"workflow: it has {len(texts)} of {' or '.join(TEXT_NODES)}, one is needed.")
        inputs = prompt[texts[0]]["inputs"]
        linked = (name for name, value in inputs.items() if name.startswith("subjects.") and is_link(value))
        sockets = sorted(linked, key=lambda name: int(name.split("_")[-1]))
        photos = tuple(tuple(load_images(prompt, inputs[name][0])) for name in sockets)
        if not photos or not all(photos):
            raise ValueError("workflow: each subject of its text must come from a Load Image.")
        if not isinstance(inputs.get("positive"), str):
            raise ValueError("workflow: the positive text must be written in the node itself, not linked to it.")
        check_seeds(prompt, texts[0])
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


def is_prompt(saved: Any) -> bool:
    return isinstance(saved, dict) and all(
        isinstance(node, dict) and isinstance(node.get("inputs"), dict) and "class_type" in node
        for node in saved.values()
    )


def check_seeds(prompt: Prompt, text: str) -> None:
    """Raises ValueError where a seed of what the text's pictures come from is linked, or there is none."""
    branches = (set(origins(prompt, number)) for number in prompt)
    painting = sorted(set().union(*(branch for branch in branches if text in branch)))
    seeds = [(number, name) for number in painting for name in SEEDS if name in prompt[number]["inputs"]]
    for number, name in seeds:
        if not isinstance(prompt[number]["inputs"][name], int):
            raise ValueError(
                f"workflow: the {name} of node {number} ({prompt[number]['class_type']}) must be a whole number "
                "in the node itself, not linked to it: each picture gets a seed of its own there."
            )
    if not seeds:
        raise ValueError(
            f"workflow: nothing that its pictures come from has a {' or '.join(SEEDS)}, so all --seeds would give one "
            "picture. Paint with a sampler that has one, such as KSampler."
        )


def load_images(prompt: Prompt, number: str) -> Iterator[str]:
    """The Load Image nodes that a subject's photos come from. Raises ValueError: its masks are of fixed photos."""
    photos = [found for found in origins(prompt, number) if prompt[found]["class_type"] == "LoadImage"]
    for encoder in origins(prompt, number):
        masks = prompt[encoder]["inputs"].get("masks") if prompt[encoder]["class_type"] == ENCODER else None
        fixed = [found for found in origins(prompt, masks[0]) if prompt[found]["class_type"] in FILES] if masks else []
        if set(fixed) - set(photos):
            raise ValueError(
                f"workflow: the masks of node {encoder} come from a file of their own, which fits no other photo. Take "
                "them from the photo's own Load Image or from a node that finds them, or disconnect them."
            )
    yield from photos


def paint_all(
    folder: Path,
    works: Sequence[Work],
    workflow: Workflow,
    references: dict[str, list[Path]],
    client: Client,
    say: Callable[[str], None],
) -> None:
    """Paints what the folder lacks, from the first photo of each subject. A picture's prompt lies beside it.

    Raises ValueError: another plan has painted here, another number of subjects, a picture of the workflow that is
    not there, or seeds that change nothing.
    ServerError, OSError: the same call goes on.
    """
    for work in works:
        if len(work.subjects) != len(workflow.photos):
            raise ValueError(
                f"workflow: it has {len(workflow.photos)} subject(s), and {BETWEEN.join(work.subjects)} needs "
                f"{len(work.subjects)}. Choose another workflow, or other --subjects."
            )
    photos = {subject: references[subject][0] for work in works for subject in work.subjects}
    check_plan(folder, workflow.prompt, photos, own_files(workflow.prompt, set().union(*workflow.photos), client))
    missing = [work for work in works if not is_painted(folder, work)]
    if len(missing) < len(works):
        say(f"{len(works) - len(missing)} of {len(works)} pictures were painted before.")
    needed = dict.fromkeys(subject for work in missing for subject in work.subjects)
    uploaded = {subject: upload(client, photos[subject]) for subject in needed}
    start, before = time.monotonic(), None
    for done, work in enumerate(missing, start=1):
        picture = paint(client, workflow.fill(work, [uploaded[subject] for subject in work.subjects]))
        if before and is_same(before, (work, picture)):
            raise ValueError(
                f"workflow: {before[0].name} and {work.name} came out alike in every pixel, so its seeds "
                "change nothing. Look whether its sampler adds noise, and takes the noise from its seed."
            )
        before = work, picture
        path = folder / work.name
        write_whole(
            path.with_suffix(".txt"), lambda partial, work=work: partial.write_text(work.plain, encoding="utf-8")
        )
        write_whole(path, lambda partial, picture=picture: partial.write_bytes(picture))
        seconds = (time.monotonic() - start) / done
        left = round(seconds * (len(missing) - done))
        say(f"painted {done} of {len(missing)}: {work.name}, {seconds:.1f} s each, {left // 60}:{left % 60:02} left")


def is_same(one: tuple[Work, bytes], other: tuple[Work, bytes]) -> bool:
    """Whether two seeds of one prompt have painted one picture. Its file may tell its seed."""
    (first, picture), (second, another) = one, other
    if first.seed == second.seed or (first.text, first.subjects) != (second.text, second.subjects):
        return False
    pixels = [Image.open(io.BytesIO(file)).convert("RGB").tobytes() for file in (picture, another)]
    return pixels[0] == pixels[1]


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
