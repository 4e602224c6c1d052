"""The demo itself, run by demo.py inside ComfyUI's Python: posts the single portrait workflow to a real server.

SDXL, CLIP and MM-Diff's checkpoint are tiny models with random weights here, so the pictures show that everything runs
and that the reference changes the result, not what a trained model paints.
"""

import json
import sys
import time
from pathlib import Path

import skimage.data
from PIL import Image, ImageDraw, ImageFont, ImageOps

from live import LiveServer, Prompt, PromptError, ServerError
from setup_host import ROOT
from tiny_prompt import with_tiny_models, without_mmdiff, write_tiny_models
from workflow_api import to_api

WORKFLOW = ROOT / "workflows" / "single_portrait.json"
OUTPUT = ROOT / "demo_output"
SIZE, STEPS = 256, 8
CELL, MARGIN, CAPTION = 256, 16, 40


def main(comfyui: str) -> int:
    """Writes the pictures and the contact sheet; 1 if the server or a prompt failed."""
    make_importable(comfyui)
    OUTPUT.mkdir(exist_ok=True)
    photo = OUTPUT / "reference.png"
    Image.fromarray(skimage.data.astronaut()).save(photo)
    print("Starting ComfyUI on the CPU", flush=True)
    try:
        with LiveServer(Path(comfyui)) as server:
            write_tiny_models(server.models)
            workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
            prompt = to_api(workflow, server.object_info())
            prompt = with_tiny_models(prompt, [server.upload_image(photo)], SIZE, STEPS)
            plain = paint(server, "plain", without_mmdiff(prompt))
            personalised = paint(server, "personalised", prompt)
    except (ServerError, PromptError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    sheet = contact_sheet(
        {
            "reference": photo,
            "face as encoded": personalised["MMDiffEncodeSubject"][0],
            "plain": plain["SaveImage"][0],
            "with MM-Diff": personalised["SaveImage"][0],
        }
    )
    sheet.save(OUTPUT / "contact_sheet.png")
    print(f"Pictures and contact_sheet.png are in {OUTPUT}")
    return 0


def paint(server: LiveServer, title: str, prompt: Prompt) -> dict[str, list[Path]]:
    """Runs a prompt with its progress shown; {node type: the pictures it shows}, written to demo_output."""
    start, clear, end = time.monotonic(), "", "\n"
    if sys.stdout.isatty():
        clear, end = "\r\033[K", ""

    def show(node_id: str, done: float, total: float) -> None:
        print(f"{clear}  {title}: {prompt[node_id]['class_type']} {done:.0f}/{total:.0f}", end=end, flush=True)

    outputs = server.run(prompt, show)
    print(f"{clear}  {title}: done in {time.monotonic() - start:.1f} s", flush=True)
    files = {}
    for node_id in outputs:
        kind = prompt[node_id]["class_type"]
        files[kind] = []
        for number, picture in enumerate(server.images(outputs, node_id), start=1):
            files[kind].append(OUTPUT / f"{title}_{kind}_{number}.png")
            files[kind][-1].write_bytes(picture)
    return files


def contact_sheet(pictures: dict[str, Path]) -> Image.Image:
    """The pictures in one row, each with its caption below."""
    sheet = Image.new("RGB", (MARGIN + len(pictures) * (CELL + MARGIN), CELL + CAPTION + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (caption, file) in enumerate(pictures.items()):
        left = MARGIN + column * (CELL + MARGIN)
        with Image.open(file) as picture:
            sheet.paste(ImageOps.pad(picture.convert("RGB"), (CELL, CELL), color="white"), (left, MARGIN))
        middle = (left + CELL // 2, MARGIN + CELL + CAPTION // 2)
        draw.text(middle, caption, fill="black", font=ImageFont.load_default(18), anchor="mm")
    return sheet


def make_importable(comfyui: str) -> None:
    """Puts ComfyUI's modules on the path. They read the command line when they are first imported."""
    sys.path.insert(0, comfyui)
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
