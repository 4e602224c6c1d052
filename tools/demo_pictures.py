"""The demo itself, run by demo.py inside ComfyUI: characters that the models have never seen, painted by a real
server with the models that come with the pack.

singles.png: three characters, each as reference, then in three prompts without and with MM-Diff. pair.png: two in one
picture with no layout given, and the map of where each went.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from live import LiveServer, Prompt, PromptError, ServerError
from setup_host import PACK, ROOT
from setup_steps import UNWRITABLE

OUTPUT = ROOT / "demo_output"
CHARACTERS = (("cat", 3), ("woman", 8), ("robot", 1))
PROMPTS = ("a {} waving on a beach", "a {} jumping in the snow", "a {} sitting in a room at night")
PAIR, PAIR_PROMPT, PAIR_SEEDS = (0, 2), "a {} and a {} standing in a park", (0, 1, 2)
TRIGGER = "<|subj|>"
SAMPLER = {"steps": 30, "cfg": 3.0, "sampler_name": "euler_ancestral", "scheduler": "karras", "denoise": 1.0}
CELL, GAP, CAPTION = 224, 12, 34

Pictures = dict[str, list[Image.Image]]


def main(comfyui: str) -> int:
    """Writes the sheets; 1 if they cannot be written, or the server or a prompt failed."""
    try:
        OUTPUT.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=OUTPUT).close()
    except OSError as error:
        print(f"\n{OUTPUT}: {error.strerror}.\n{UNWRITABLE}", file=sys.stderr)
        return 1
    print("Starting ComfyUI on the CPU", flush=True)
    try:
        with LiveServer(Path(comfyui), options=("--cpu",), packs={PACK: ROOT}) as server:
            rows = [single_row(paint(server, word, single_graph(word, seed))) for word, seed in CHARACTERS]
            pair = paint(server, "two in one picture", pair_graph([CHARACTERS[number] for number in PAIR]))
    except (ServerError, PromptError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    titles = [
        "reference",
        *(f"{prompt.format('...')}|{how}" for prompt in PROMPTS for how in ("without", "with MM-Diff")),
    ]
    sheet(titles, rows).save(OUTPUT / "singles.png")
    titles = ["references", "without", "with MM-Diff", "where the first is", "where the second is"]
    sheet(titles, pair_rows(pair)).save(OUTPUT / "pair.png")
    print(f"singles.png and pair.png are in {OUTPUT}")
    return 0


class Graph:
    """An API-format prompt that starts with the demo's models."""

    def __init__(self, characters: Sequence[tuple[str, int]]):
        self.prompt: Prompt = {}
        self.model, self.clip, self.vae, self.vision, self.mmdiff = (
            [self.add("models", "MMDiffDemoModels"), slot] for slot in range(5)
        )
        self.subjects = [self.subject(number, *character) for number, character in enumerate(characters, start=1)]

    def add(self, name: str, kind: str, **inputs: Any) -> str:
        self.prompt[name] = {"class_type": kind, "inputs": inputs}
        return name

    def subject(self, number: int, word: str, seed: int) -> list[Any]:
        image = [self.add(f"character {number}", "MMDiffDemoCharacter", word=word, seed=seed), 0]
        self.add(f"reference {number}", "PreviewImage", images=image)
        options = {"face": "largest", "face_index": 1, "cls_from": "first photo (as released)"}
        inputs = {"mmdiff": self.mmdiff, "clip_vision": self.vision, "images": image, **options}
        return [self.add(f"subject {number}", "MMDiffEncodeSubject", **inputs), 0]

    def without(self, name: str, text: str, seed: int) -> None:
        """A picture of the prompt by the base alone."""
        sides = (
            [self.add(f"{name} {side}", "CLIPTextEncode", clip=self.clip, text=words), 0]
            for side, words in (("positive", text), ("negative", ""))
        )
        self.sample(name, self.model, *sides, seed)

    def with_subjects(self, name: str, text: str, seed: int) -> None:
        """A picture of a prompt with triggers."""
        subjects = {f"subjects.subject_{number}": subject for number, subject in enumerate(self.subjects, start=1)}
        options = {"fuse_scale": 1.0, "start_percent": 0.0, "end_percent": 1.0, "routing": "auto"}
        advanced = {"negative_fusion": "clean", "start_merge_step": 0}
        inputs = {"model": self.model, "clip": self.clip, "mmdiff": self.mmdiff, **subjects, **options, **advanced}
        apply = self.add(f"{name} apply", "MMDiffApply", positive=text, negative="", **inputs)
        self.sample(name, *([apply, slot] for slot in range(3)), seed)

    def sample(self, name: str, model: list, positive: list, negative: list, seed: int) -> None:
        latent = [self.add("latent", "EmptyLatentImage", width=128, height=128, batch_size=1), 0]
        conditions = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
        samples = [self.add(f"{name} sampler", "KSampler", **conditions, seed=seed, **SAMPLER), 0]
        self.add(f"{name} decode", "VAEDecode", samples=samples, vae=self.vae)
        self.add(name, "PreviewImage", images=[f"{name} decode", 0])


def single_graph(word: str, seed: int) -> Prompt:
    graph = Graph([(word, seed)])
    for number, prompt in enumerate(PROMPTS):
        graph.without(f"without {number}", prompt.format(word), seed)
        graph.with_subjects(f"with {number}", prompt.format(word + TRIGGER), seed)
    return graph.prompt


def pair_graph(characters: Sequence[tuple[str, int]]) -> Prompt:
    graph = Graph(characters)
    words = [word for word, _ in characters]
    for seed in PAIR_SEEDS:
        graph.without(f"without {seed}", PAIR_PROMPT.format(*words), seed)
        graph.with_subjects(f"with {seed}", PAIR_PROMPT.format(*(word + TRIGGER for word in words)), seed)
        inputs = {"model": [f"with {seed} apply", 0], "images": [f"with {seed} decode", 0], "opacity": 0.6}
        maps = graph.add(f"routing {seed}", "MMDiffRoutingPreview", **inputs)
        graph.add(f"maps {seed}", "PreviewImage", images=[maps, 0])
    return graph.prompt


def paint(server: LiveServer, title: str, prompt: Prompt) -> Pictures:
    """Runs a prompt -> the pictures that its nodes show, by node. Raises ServerError where one is of one colour."""
    start = time.monotonic()
    outputs = server.run(prompt)
    print(f"  {title}: {time.monotonic() - start:.1f} s", flush=True)
    shown = [name for name in outputs if prompt[name]["class_type"] == "PreviewImage"]
    found = {
        name: [Image.open(BytesIO(data)).convert("RGB") for data in server.images(outputs, name)] for name in shown
    }
    for name, pictures in found.items():
        if any(all(low == high for low, high in picture.getextrema()) for picture in pictures):
            log = server.log.read_text(errors="replace")
            raise ServerError(f"{title}: the picture of '{name}' is of one colour. ComfyUI's log:\n{log[-4000:]}")
    return found


def single_row(pictures: Pictures) -> list[Image.Image]:
    names = [f"{how} {number}" for number in range(len(PROMPTS)) for how in ("without", "with")]
    return [pictures[name][0] for name in ("reference 1", *names)]


def pair_rows(pictures: Pictures) -> list[list[Image.Image]]:
    rows = []
    for number, seed in enumerate(PAIR_SEEDS):
        reference = pictures[f"reference {number + 1}"][0] if number < 2 else Image.new("RGB", (8, 8), "white")
        rows.append([reference, pictures[f"without {seed}"][0], pictures[f"with {seed}"][0], *pictures[f"maps {seed}"]])
    return rows


def sheet(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """The pictures as a table below their titles; `|` breaks a title's line."""
    size = GAP + len(titles) * (CELL + GAP), CAPTION + GAP + len(rows) * (CELL + GAP)
    table = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(table), ImageFont.load_default(13)
    for column, title in enumerate(titles):
        left = GAP + column * (CELL + GAP)
        middle = left + CELL // 2, CAPTION // 2 + GAP // 2
        draw.multiline_text(middle, title.replace("|", "\n"), "black", font, anchor="mm", align="center")
        for row, pictures in enumerate(rows):
            picture = pictures[column].resize((CELL, CELL), Image.Resampling.BICUBIC)
            table.paste(picture, (left, CAPTION + GAP + row * (CELL + GAP)))
    return table
